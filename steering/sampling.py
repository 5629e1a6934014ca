"""How the logits of a row of text are changed and filtered: a value without a model or torch."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True, kw_only=True)
class LogitOptions:
    """By vLLM's names; the defaults change nothing.

    `top_k` 0 keeps all tokens; `min_p` is relative to the likeliest token's probability.
    `frequency_penalty` and `presence_penalty` read the generated tokens, `repetition_penalty` those
    of the prompt too. `logit_bias` are pairs of a token and what is added to its logit. Before
    `min_tokens` tokens none of those that end the row is generated.
    """

    top_k: int = 0
    min_p: float = 0.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    min_tokens: int = 0

    def logit_options(self) -> dict[str, Any]:
        """These fields by name, for another class that has them."""
        return {each.name: getattr(self, each.name) for each in fields(LogitOptions)}
