"""What is measured of answers: leaks are in `guard.prompts`, fluency and loops are here."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import torch

from guard.chat import Chat

LOOP_WORDS = 4
LOOP_TIMES = 4
_BATCH = 16


def loops(text: str) -> bool:
    """Whether some run of LOOP_WORDS words stands in `text` LOOP_TIMES times or more."""
    words = text.lower().split()
    runs = zip(*(words[i:] for i in range(LOOP_WORDS)), strict=False)
    return max(Counter(runs).values(), default=0) >= LOOP_TIMES


@torch.inference_mode()
def perplexity(
    chat: Chat, said: Sequence[Sequence[int]], prompts: Sequence[Sequence[int]] | None = None
) -> float:
    """Perplexity of answers (token ids) under the bare model, pooled over all their tokens.

    Without `prompts` each answer is a lone assistant turn: what is measured is whether the text is
    fluent, and an answer that moves away from the question is not punished for that. With them it
    is conditional on the question. NaN where there are no tokens.
    """
    lead = chat.prompt("Say something.")[-3:]
    leads = [list(prompt) for prompt in prompts] if prompts else [lead] * len(said)
    rows = [(start, list(own)) for start, own in zip(leads, said, strict=True) if own]
    rows.sort(key=lambda row: len(row[0]) + len(row[1]))
    device = next(chat.model.parameters()).device
    total, count = 0.0, 0
    for at in range(0, len(rows), _BATCH):
        chosen = rows[at : at + _BATCH]
        longest = max(len(start) + len(own) for start, own in chosen)
        ids = torch.zeros(len(chosen), longest, dtype=torch.long)
        own_tokens = torch.zeros(len(chosen), longest, dtype=torch.bool)
        for i, (start, own) in enumerate(chosen):
            end = len(start) + len(own)
            ids[i, :end] = torch.tensor([*start, *own])
            own_tokens[i, len(start) : end] = True
        ids = ids.to(device)
        logits = chat.model(input_ids=ids, use_cache=False).logits[:, :-1].float()
        loss = torch.nn.functional.cross_entropy(
            logits.transpose(1, 2), ids[:, 1:], reduction="none"
        )
        total += float(loss.cpu()[own_tokens[:, 1:]].sum())
        count += int(own_tokens.sum())
    return math.exp(total / count) if count else math.nan
