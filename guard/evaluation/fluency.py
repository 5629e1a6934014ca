"""What is measured of answers: leaks are in `guard.data.prompts`, fluency and loops are here."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from guard.models.chat import ChatModel
from steering.prompt import Prompt

LOOP_WORDS = 4
LOOP_TIMES = 4


def loops(text: str) -> bool:
    """Whether some run of LOOP_WORDS words stands in `text` LOOP_TIMES times or more."""
    words = text.lower().split()
    runs = zip(*(words[i:] for i in range(LOOP_WORDS)), strict=False)
    return max(Counter(runs).values(), default=0) >= LOOP_TIMES


def perplexity(
    chat: ChatModel, said: Sequence[Sequence[int]], prompts: Sequence[Prompt] | None = None
) -> float:
    """Perplexity of answers (token ids) under the bare model, pooled over all their tokens.

    Without `prompts` each answer is a lone assistant turn: what is measured is whether the text is
    fluent, and an answer that moves away from the question is not punished for that. With them it
    is conditional on the question. NaN where there are no tokens.
    """
    lead = chat.prompt("Say something.").tokens[-3:]
    leads = [prompt.tokens for prompt in prompts] if prompts else [lead] * len(said)
    rows = [(start, own) for start, own in zip(leads, said, strict=True) if own]
    total, count = 0.0, 0
    for i, losses in chat.losses([[*start, *own] for start, own in rows]):
        own_tokens = len(rows[i][1])
        total += float(losses[-own_tokens:].sum())
        count += own_tokens
    return math.exp(total / count) if count else math.nan
