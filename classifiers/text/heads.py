"""Heads on a sentence embedding: each gives the calibrated probability that a text is unsafe.

Any number of heads share one product: the directions that they project the embedding on are stacked
into one matrix, and each goes on from its own columns.

    logistic    logit = w · e + b
    mlp         logit = v · relu(W e + c) + b
    prototype   logit = logsumexp(s U e) - logsumexp(s B e): how much nearer the embedding is to the
                prototypes of unsafe texts (rows of U) than to those of benign ones (rows of B)

A logit becomes a probability by a temperature (Guo et al. 2017, arXiv 1706.04599) or by a table
between whose points it is interpolated (isotonic regression). Both rise strictly wherever texts to
be told apart may lie, so that they change no order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Kind = Literal["logistic", "mlp", "prototype"]
Floats = NDArray[np.float32]
Tensors = Mapping[str, Floats]

_PARTS: Mapping[Kind, tuple[str, ...]] = {
    "logistic": ("weight", "bias"),
    "mlp": ("hidden", "hidden_bias", "out", "bias"),
    "prototype": ("unsafe", "benign"),
}
_TABLE = ("table_logits", "table_chances")


@dataclass(frozen=True, slots=True, eq=False)
class TextHead:
    """One head, float32. Making one checks it: ValueError says which tensor is at fault.

    `parts` of a logistic head: `weight [1, width]`, `bias [1]`; of an mlp: `hidden [d, width]`,
    `hidden_bias [d]`, `out [d]`, `bias [1]`; of a prototype head: `unsafe [k, width]`,
    `benign [m, width]`. `table` is `[2, points]`, logits above their probabilities, or None, where
    `temperature` counts. `sharpness` is that of prototypes.
    """

    kind: Kind
    parts: Tensors
    temperature: float = 1.0
    table: Floats | None = None
    sharpness: float = 1.0

    def __post_init__(self) -> None:
        _check(self)

    @property
    def width(self) -> int:
        return int(self.directions.shape[1])

    @property
    def directions(self) -> Floats:
        """What an embedding is projected on, `[columns, width]`."""
        if self.kind == "prototype":
            return np.concatenate([self.parts["unsafe"], self.parts["benign"]])
        return self.parts["weight" if self.kind == "logistic" else "hidden"]

    def logits(self, projected: Floats) -> Floats:
        """Logits `[n]`, from projections `[n, columns]` on `directions`."""
        if self.kind == "logistic":
            result = projected[:, 0] + self.parts["bias"]
        elif self.kind == "mlp":
            active = np.maximum(projected + self.parts["hidden_bias"], 0)
            result = active @ self.parts["out"] + self.parts["bias"]
        else:
            split = len(self.parts["unsafe"])
            near = self.sharpness * projected
            result = _logsumexp(near[:, :split]) - _logsumexp(near[:, split:])
        logits: Floats = result.astype(np.float32)
        return logits

    def chances(self, logits: Floats) -> Floats:
        """Probabilities of `logits`, of the same shape."""
        if self.table is not None:
            at: Floats = np.interp(logits, *self.table).astype(np.float32)
            return at
        halves = np.tanh(logits / (2 * self.temperature))  # of a sigmoid, without overflow
        chances: Floats = (0.5 + 0.5 * halves).astype(np.float32)
        return chances

    def tensors(self) -> dict[str, Floats]:
        """What an artifact holds, beside `settings`."""
        table = {} if self.table is None else dict(zip(_TABLE, self.table, strict=True))
        return {**self.parts, **table}

    def settings(self) -> dict[str, Any]:
        """JSON that `from_tensors` needs beside the tensors."""
        how: dict[str, Any] = {"kind": self.kind}
        how["calibration"] = "temperature" if self.table is None else "isotonic"
        if self.table is None:
            how["temperature"] = self.temperature
        if self.kind == "prototype":
            how["sharpness"] = self.sharpness
        return how

    @classmethod
    def from_tensors(cls, tensors: Tensors, settings: Mapping[str, Any]) -> TextHead:
        """The head of an artifact; settings that are not a head's are left alone.

        Raises ValueError where they do not hold.
        """
        named, calibration = settings.get("kind"), settings.get("calibration")
        kind = next((kind for kind in _PARTS if kind == named), None)
        if kind is None:
            raise ValueError(f"a text head is of kind {', '.join(_PARTS)}, not {named!r}")
        if calibration not in {"temperature", "isotonic"}:
            raise ValueError(
                f"a text head's calibration is temperature or isotonic, not {calibration!r}"
            )
        wanted = {*_PARTS[kind], *(_TABLE if calibration == "isotonic" else ())}
        if set(tensors) != wanted:
            raise ValueError(
                f"a {kind} head with {calibration} calibration holds {', '.join(sorted(wanted))}, "
                f"not {', '.join(sorted(tensors))}"
            )
        table = None
        if calibration == "isotonic":
            logits, chances = (tensors[name] for name in _TABLE)
            if logits.ndim != 1 or logits.shape != chances.shape:
                raise ValueError(f"{' and '.join(_TABLE)} must be of one length")
            table = np.stack([logits, chances])
        return cls(
            kind=kind,
            parts={name: tensors[name] for name in _PARTS[kind]},
            temperature=_number(settings, "temperature"),
            table=table,
            sharpness=_number(settings, "sharpness"),
        )


class TextHeads:
    """Heads of several screens, scored in one product. Raises ValueError for unlike widths."""

    def __init__(self, heads: Sequence[TextHead]) -> None:
        widths = {head.width for head in heads}
        if len(widths) != 1:
            raise ValueError(f"heads that are scored together have one width, not {sorted(widths)}")
        (self.width,) = widths
        self._heads = tuple(heads)
        self._directions = np.concatenate([head.directions for head in heads]).T.copy()
        self._ends = np.cumsum([len(head.directions) for head in heads])[:-1]

    def __len__(self) -> int:
        return len(self._heads)

    def logits(self, embeddings: Floats) -> Floats:
        """`[n, heads]` of `embeddings [n, width]`, before calibration."""
        if embeddings.ndim != 2 or embeddings.shape[1] != self.width:
            raise ValueError(f"embeddings must be [n, {self.width}], not {embeddings.shape}")
        own = np.split(embeddings @ self._directions, self._ends, axis=1)
        pairs = zip(self._heads, own, strict=True)
        return np.stack([head.logits(columns) for head, columns in pairs], axis=1)

    def scores(self, embeddings: Floats) -> Floats:
        """Probabilities `[n, heads]`, float32, of `embeddings [n, width]`."""
        pairs = zip(self._heads, self.logits(embeddings).T, strict=True)
        return np.stack([head.chances(logits) for head, logits in pairs], axis=1)


def _check(head: TextHead) -> None:
    shapes = {name: head.parts[name].shape for name in _PARTS[head.kind]}
    matrices = [name for name in ("weight", "hidden", "unsafe", "benign") if name in shapes]
    if any(len(shapes[name]) != 2 or 0 in shapes[name] for name in matrices):
        raise ValueError(f"{' and '.join(matrices)} of a {head.kind} head must be [rows, width]")
    rows, width = shapes[matrices[0]]
    expected = {"weight": (1, width), "bias": (1,), "hidden_bias": (rows,), "out": (rows,)}
    expected |= {"benign": (shapes.get("benign", (0,))[0], width)}
    for name, shape in shapes.items():
        if shape != expected.get(name, shape):
            raise ValueError(f"{name} of a {head.kind} head must be {expected[name]}, not {shape}")
    if not all(np.isfinite(values).all() for values in head.parts.values()):
        raise ValueError(f"a tensor of the {head.kind} head is not finite: fit it again")
    for name in ("temperature", "sharpness"):
        value = getattr(head, name)
        if not 0 < value < np.inf:
            raise ValueError(f"{name} of a text head must be above zero, not {value}")
    if head.table is not None:
        _check_table(head.table)


def _check_table(table: Floats) -> None:
    logits, chances = table
    if len(logits) < 2 or not np.isfinite(table).all():
        raise ValueError("a calibration table needs two finite points at least")
    if (np.diff(logits) <= 0).any() or (np.diff(chances) <= 0).any():
        raise ValueError("logits and probabilities of a calibration table must rise")
    if chances[0] < 0 or chances[-1] > 1:
        raise ValueError("probabilities of a calibration table lie between 0 and 1")


def _number(settings: Mapping[str, Any], name: str) -> float:
    value = settings.get(name, 1.0)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{name} of a text head must be a number, not {value!r}")
    return float(value)


def _logsumexp(values: Floats) -> Floats:
    top = values.max(axis=1)
    result: Floats = top + np.log(np.exp(values - top[:, None]).sum(axis=1))
    return result
