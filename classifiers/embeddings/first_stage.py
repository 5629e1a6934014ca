"""A first stage before an encoder: what a head's logit will be, estimated without an embedding.

    estimate = w · c + b,    c = (s - m) / |s - m|

where s is a static embedding of length one and m the mean of those that the stage learned from.
Where the estimate is below the cut, the head is taken not to fire, and nothing is encoded. After
Viola and Jones 2001 (a cascade), with the head itself as the teacher. Of words that the stage has
not learnt from it knows nothing: where they are many, as in another language, nothing is clear.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from classifiers.embeddings.heads import EmbeddingHead, Floats, Tensors

CUT = "first_stage_cut"
"""The setting of an artifact that has a first stage."""
_NAMES = ("first_weight", "first_bias", "first_mean", "first_known")
UNKNOWN = 0.25
"""The share of tokens that a stage has not learnt from over which it says nothing of a text: in
English it is a tenth, in other languages of the Latin alphabet two fifths."""
_BITS = 24
"""Of one number of float32, exactly."""


@dataclass(frozen=True, slots=True, eq=False)
class FirstStage:
    """The first stage of one head: `weight [width]`, `bias`, `mean [width]`, `known [vocabulary]`
    marks the tokens that it has learnt from, and the `cut` is a logit of the head."""

    weight: Floats
    bias: float
    mean: Floats
    known: NDArray[np.bool_]
    cut: float

    def tensors(self) -> dict[str, Floats]:
        """The tensors of the artifact, beside the head's."""
        values = (self.weight, np.array([self.bias], np.float32), self.mean, _packed(self.known))
        return dict(zip(_NAMES, values, strict=True))

    def settings(self) -> dict[str, Any]:
        """The settings of the artifact, beside the head's."""
        return {CUT: self.cut}

    @classmethod
    def of(cls, tensors: Tensors, settings: Mapping[str, Any]) -> FirstStage | None:
        """The first stage of an artifact, None where it has none.

        Raises ValueError for tensors or settings that make none.
        """
        present = [name for name in _NAMES if name in tensors]
        if not present and CUT not in settings:
            return None
        cut = settings.get(CUT)
        if len(present) < len(_NAMES) or isinstance(cut, bool) or not isinstance(cut, int | float):
            raise ValueError(
                f"a first stage holds {', '.join(_NAMES)} and the number {CUT}: fit it again"
            )
        weight, bias, mean, known = (tensors[name] for name in _NAMES)
        if weight.ndim != 1 or weight.shape != mean.shape or bias.shape != (1,):
            raise ValueError(
                "first_weight and first_mean must be [width] and first_bias [1]: fit it again"
            )
        if not all(np.isfinite(tensors[name]).all() for name in _NAMES):
            raise ValueError("a tensor of the first stage is not finite: fit it again")
        return cls(weight, float(bias[0]), mean, _unpacked(known), float(cut))


class FirstStages:
    """The first stages of `heads`, in one product; a head without one is never cleared.

    `thresholds` are those in force, of probabilities. Raises ValueError for unlike widths and where
    there is no stage.
    """

    def __init__(
        self,
        stages: Sequence[FirstStage | None],
        heads: Sequence[EmbeddingHead | None],
        thresholds: Sequence[float],
    ) -> None:
        widths = {len(stage.weight) for stage in stages if stage is not None}
        if len(widths) != 1:
            raise ValueError(f"first stages must have one width, not {sorted(widths)}")
        (self.width,) = widths
        zeros = np.zeros(self.width, np.float32)
        none = FirstStage(zeros, 0.0, zeros, np.zeros(0, np.bool_), 0.0)
        known = [stage or none for stage in stages]
        self._weights = np.stack([stage.weight for stage in known], axis=1)
        self._means = np.stack([stage.mean for stage in known], axis=1)
        self._biases = np.array([stage.bias for stage in known], np.float32)
        cuts = [-np.inf if stage is None else stage.cut for stage in stages]
        self._cuts = np.array(cuts, np.float32)
        self._heads, self._thresholds = tuple(heads), np.asarray(thresholds, np.float32)
        self.vocabulary = max(len(stage.known) for stage in known)
        self._unknown = np.ones((self.vocabulary, len(known)), np.float32)
        for column, stage in enumerate(known):
            self._unknown[: len(stage.known), column] -= stage.known
        self._shift = (self._weights * self._means).sum(axis=0)
        self._squares = (self._means**2).sum(axis=0)

    def estimates(self, static: Floats, windows: Sequence[Sequence[int]]) -> Floats:
        """Estimated logits `[n, heads]` of windows' static embeddings `[n, width]` and token ids;
        infinity where too many tokens are unknown."""
        products = static @ self._weights - self._shift
        squares = (static**2).sum(axis=1, keepdims=True) - 2 * static @ self._means + self._squares
        result: Floats = products / np.sqrt(np.maximum(squares, 1e-12)) + self._biases
        unknown = [self._unknown[list(ids)].mean(axis=0) if ids else 0 for ids in windows]
        for row, shares in enumerate(unknown):
            result[row, shares > UNKNOWN] = np.inf
        return result

    def cleared(self, estimates: Floats, heads: Sequence[int]) -> NDArray[np.bool_]:
        """Whether all of these heads are clear, `[n]`."""
        columns = list(heads)
        return np.asarray((estimates[:, columns] < self._cuts[columns]).all(axis=1), np.bool_)

    def scores(self, estimates: Floats) -> Floats:
        """Estimated probabilities `[n, heads]`, none over its threshold; 0 without a head."""
        columns = [
            np.zeros(len(estimates), np.float32) if head is None else head.probabilities(logits)
            for head, logits in zip(self._heads, estimates.T, strict=True)
        ]
        return np.minimum(np.stack(columns, axis=1), self._thresholds)


def _packed(known: NDArray[np.bool_]) -> Floats:
    """Flags as numbers of _BITS bits each."""
    padded = np.zeros(-(-len(known) // _BITS) * _BITS, np.bool_)
    padded[: len(known)] = known
    parts = np.packbits(padded).reshape(-1, 3).astype(np.float32)
    numbers: Floats = parts @ np.array([65536, 256, 1], np.float32)
    return numbers


def _unpacked(numbers: Floats) -> NDArray[np.bool_]:
    """The flags of `_packed`, and some more that are False. Raises ValueError for other numbers."""
    if numbers.ndim != 1 or (numbers != np.floor(numbers)).any():
        raise ValueError("first_known must hold whole numbers: fit it again")
    if len(numbers) and not 0 <= numbers.min() <= numbers.max() < 2**_BITS:
        raise ValueError(f"first_known must hold numbers of {_BITS} bits: fit it again")
    whole = numbers.astype(np.uint32)
    parts = np.stack([whole >> 16, whole >> 8 & 255, whole & 255], axis=1).astype(np.uint8)
    return np.unpackbits(parts.reshape(-1)).astype(np.bool_)
