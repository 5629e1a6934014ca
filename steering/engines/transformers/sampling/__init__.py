"""From logits to tokens: how each row of a batch is sampled.

Rows that ask for nothing here pay nothing, and get what they would get in any other batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from steering.sampling import LogitOptions

if TYPE_CHECKING:
    from steering.engines.transformers.sampling.grammars import Grammar


@dataclass(frozen=True)
class RowSampling(LogitOptions):
    """How one row is sampled. The defaults change nothing.

    `temperature` 0 is greedy. Before `min_tokens` tokens none of `ends` is generated; not together
    with a `grammar`, which the whole answer matches.

    `top_logprobs` None stands for no log-probabilities; `scored` are tokens whose log-probabilities
    are wanted at each step: both are the model's own, before any of the above.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    top_logprobs: int | None = None
    scored: tuple[int, ...] = ()
    ends: tuple[int, ...] = ()
    grammar: Grammar | None = None

    @property
    def adjusts(self) -> bool:
        """Whether logits of the row are changed before a token is chosen."""
        penalties = self.frequency_penalty, self.presence_penalty, self.repetition_penalty
        return penalties != (0, 0, 1) or bool(self.logit_bias) or self.min_tokens > 0
