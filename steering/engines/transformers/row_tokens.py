"""What a forward has generated for each row: a token, and what the row wants to know of it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from torch import Tensor

from steering.engines.transformers.sampling import RowSampling
from steering.hidden.table import RowFlags, TokenScores


@dataclass(frozen=True)
class RowToken:
    """One generated token. `logprob`, `top`, `scores` and `gates` are filled where the row asked
    for them; `gates` are of the tokens that were read to generate this one.

    `unmatched`: the row's grammar follows its answer no further: nothing behind is known to match.
    """

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    flags: RowFlags = RowFlags()
    scores: tuple[float, ...] = ()
    """Log-probabilities of the tokens `RowSampling.scored`."""
    unmatched: bool = False
    gates: tuple[TokenScores, ...] = ()


def row_tokens(
    tokens: Sequence[int],
    logits: Tensor,
    flags: Sequence[RowFlags],
    settings: Sequence[RowSampling],
    unmatched: Collection[int],
) -> list[RowToken]:
    """The chosen `tokens` of `logits [rows, vocabulary]`; `unmatched` are rows among them."""
    counts = [setting.top_logprobs for setting in settings]
    if not unmatched and not any(
        setting.top_logprobs is not None or setting.scored for setting in settings
    ):
        return [RowToken(t, None, (), f) for t, f in zip(tokens, flags, strict=True)]
    logprobs = logits.log_softmax(-1)
    chosen = logprobs[range(len(tokens)), list(tokens)].tolist()
    most = max((count for count in counts if count is not None), default=1) or 1
    values, ids = (part.tolist() for part in logprobs.topk(most, dim=-1))
    result = []
    for i, count in enumerate(counts):
        top = tuple(zip(ids[i], values[i], strict=True))[: count or 0]
        logprob = None if count is None else chosen[i]
        scored = settings[i].scored
        scores = tuple(logprobs[i, list(scored)].tolist()) if scored else ()
        result.append(RowToken(tokens[i], logprob, top, flags[i], scores, i in unmatched))
    return result
