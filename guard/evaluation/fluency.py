"""Fluency and loops of answers; leaks are in `guard.data.prompts`."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from guard.models.chat import ChatModel
from steering.prompt import Prompt

LOOP_WORDS = 4
LOOP_TIMES = 4


def loops(text: str) -> bool:
    """Whether a run of LOOP_WORDS words occurs in `text` LOOP_TIMES times or more."""
    words = text.lower().split()
    runs = zip(*(words[i:] for i in range(LOOP_WORDS)), strict=False)
    return max(Counter(runs).values(), default=0) >= LOOP_TIMES


def perplexity(
    chat: ChatModel,
    answers: Sequence[Sequence[int]],
    prompts: Sequence[Prompt] | None = None,
) -> float:
    """Perplexity of answers (token ids) under the bare model, pooled over all their tokens.

    Without `prompts` each answer is an assistant message by itself: this measures fluency and does
    not penalise an answer that avoids the question. With `prompts` it is conditional on them. NaN
    without tokens.
    """
    lead = chat.prompt("Say something.").tokens[-3:]
    leads = [prompt.tokens for prompt in prompts] if prompts else [lead] * len(answers)
    rows = [(start, answer) for start, answer in zip(leads, answers, strict=True) if answer]
    total, count = 0.0, 0
    for i, losses in chat.losses([[*start, *answer] for start, answer in rows]):
        length = len(rows[i][1])
        total += float(losses[-length:].sum())
        count += length
    return math.exp(total / count) if count else math.nan
