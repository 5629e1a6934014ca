"""Heads on the embedding of a text or an image: each gives the calibrated probability that it is
unsafe.

Any number of heads share one matrix product: the directions on which they project the embedding are
stacked into one matrix, and each head continues from its columns.

    logistic    logit = w · e + b
    kernel      logit = a · exp(s (X e - 1)) + b: a support vector machine with a Gaussian kernel
                and the support vectors X (Cortes and Vapnik 1995)
    mlp         logit = v · relu(W e + c) + b
    prototype   logit = logsumexp(s U e) - logsumexp(s B e): how much nearer the embedding is to the
                prototypes of what is unsafe (rows of U) than to those of what is benign (rows of B)

A logit becomes a probability by a temperature (Guo et al. 2017, arXiv 1706.04599) or by a table
between whose points it is interpolated (isotonic regression). Both rise strictly over
the range of possible logits, so that they keep the order of scores.

Where a head reads single sentences of a text too, it has another head for them, with a bias by
which one threshold holds for both: a text has many sentences, any of which may score high by
chance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

Kind = Literal["logistic", "kernel", "mlp", "prototype"]
Floats = NDArray[np.float32]
Flags = NDArray[np.bool_]
Tensors = Mapping[str, Floats]

_PARTS: Mapping[Kind, tuple[str, ...]] = {
    "logistic": ("weight", "bias"),
    "kernel": ("support", "out", "bias"),
    "mlp": ("hidden", "hidden_bias", "out", "bias"),
    "prototype": ("unsafe", "benign"),
}
_MATRICES = ("weight", "support", "hidden", "unsafe", "benign")
_TABLE = ("table_logits", "table_chances")
_SENTENCE = "sentence"
_SENTENCE_KIND, _SENTENCE_SHARPNESS = "sentence_kind", "sentence_sharpness"
_SHARP: tuple[Kind, ...] = ("kernel", "prototype")
"""Kinds with a sharpness."""
_FIRST = "first_"
"""How the tensors of a first stage begin, which is no part of the head."""


@dataclass(frozen=True, slots=True, eq=False)
class EmbeddingHead:
    """One head, float32. Its construction checks it: a ValueError names the tensor at fault.

    `parts` of a logistic head: `weight [1, width]`, `bias [1]`; of a kernel: `support [k, width]`,
    `out [k]`, `bias [1]`; of an mlp: `hidden [d, width]`, `hidden_bias [d]`, `out [d]`, `bias [1]`;
    of a prototype head: `unsafe [k, width]`, `benign [m, width]`. `table` is `[2, points]`, a row
    of logits and a row of their probabilities; without it `temperature` calibrates. `sharpness`
    belongs to kernels and prototypes. `sentence` is the head by which single sentences are read, a
    logistic one or a kernel whose logits this head calibrates; without it they are not.
    """

    kind: Kind
    parts: Tensors
    temperature: float = 1.0
    table: Floats | None = None
    sharpness: float = 1.0
    sentence: EmbeddingHead | None = None

    def __post_init__(self) -> None:
        _check(self)

    @property
    def width(self) -> int:
        return int(self.directions.shape[1])

    @property
    def directions(self) -> Floats:
        """The directions on which an embedding is projected, `[columns, width]`."""
        if self.kind == "prototype":
            return np.concatenate([self.parts["unsafe"], self.parts["benign"]])
        names: Mapping[Kind, str] = {"logistic": "weight", "kernel": "support", "mlp": "hidden"}
        return self.parts[names[self.kind]]

    def logits(self, projected: Floats) -> Floats:
        """Logits `[n]`, from projections `[n, columns]` on `directions`."""
        if self.kind == "logistic":
            result = projected[:, 0] + self.parts["bias"]
        elif self.kind == "kernel":
            near = np.exp(self.sharpness * (projected - 1))
            result = near @ self.parts["out"] + self.parts["bias"]
        elif self.kind == "mlp":
            active = np.maximum(projected + self.parts["hidden_bias"], 0)
            result = active @ self.parts["out"] + self.parts["bias"]
        else:
            split = len(self.parts["unsafe"])
            near = self.sharpness * projected
            result = _logsumexp(near[:, :split]) - _logsumexp(near[:, split:])
        logits: Floats = result.astype(np.float32)
        return logits

    def probabilities(self, logits: Floats) -> Floats:
        """Calibrated probabilities of `logits`, in the same shape."""
        if self.table is not None:
            interpolated: Floats = np.interp(logits, *self.table).astype(np.float32)
            return interpolated
        halves = np.tanh(logits / (2 * self.temperature))  # a sigmoid without overflow
        probabilities: Floats = (0.5 + 0.5 * halves).astype(np.float32)
        return probabilities

    def with_bias(self, added: float) -> EmbeddingHead:
        """The head, of any kind but prototype, with `added` to each logit."""
        bias = np.asarray(self.parts["bias"] + added, np.float32)
        return replace(self, parts={**self.parts, "bias": bias})

    def tensors(self) -> dict[str, Floats]:
        """The tensors of the artifact; `settings` has the rest."""
        table = {} if self.table is None else dict(zip(_TABLE, self.table, strict=True))
        return {**self.parts, **table, **_sentence_tensors(self.sentence)}

    def settings(self) -> dict[str, Any]:
        """The JSON that `from_tensors` needs beside the tensors."""
        settings: dict[str, Any] = {"kind": self.kind}
        settings["calibration"] = "temperature" if self.table is None else "isotonic"
        if self.table is None:
            settings["temperature"] = self.temperature
        if self.kind in _SHARP:
            settings["sharpness"] = self.sharpness
        if self.sentence is not None and self.sentence.kind == "kernel":
            settings[_SENTENCE_KIND] = self.sentence.kind
            settings[_SENTENCE_SHARPNESS] = self.sentence.sharpness
        return settings

    @classmethod
    def from_tensors(cls, tensors: Tensors, settings: Mapping[str, Any]) -> EmbeddingHead:
        """The head of an artifact; other settings, and a first stage, are ignored.

        Raises ValueError for tensors or settings that make no head.
        """
        name, calibration = settings.get("kind"), settings.get("calibration")
        kind = next((kind for kind in _PARTS if kind == name), None)
        if kind is None:
            raise ValueError(f"a head is of kind {', '.join(_PARTS)}, not {name!r}")
        if calibration not in {"temperature", "isotonic"}:
            raise ValueError(
                f"a head's calibration is temperature or isotonic, not {calibration!r}"
            )
        names = {*_PARTS[kind], *(_TABLE if calibration == "isotonic" else ())}
        tensors = {name: tensors[name] for name in tensors if not name.startswith(_FIRST)}
        sentence = _sentence_of(tensors, settings)
        tensors = {name: tensors[name] for name in tensors if not name.startswith(_SENTENCE)}
        if set(tensors) != names:
            raise ValueError(
                f"a {kind} head with {calibration} calibration holds {', '.join(sorted(names))}, "
                f"not {', '.join(sorted(tensors))}"
            )
        table = None
        if calibration == "isotonic":
            logits, probabilities = (tensors[name] for name in _TABLE)
            if logits.ndim != 1 or logits.shape != probabilities.shape:
                raise ValueError(f"{' and '.join(_TABLE)} must be of one length")
            table = np.stack([logits, probabilities])
        return cls(
            kind=kind,
            parts={name: tensors[name] for name in _PARTS[kind]},
            temperature=_number(settings, "temperature"),
            table=table,
            sharpness=_number(settings, "sharpness"),
            sentence=sentence,
        )


class Fitted(Protocol):
    """One screen as its artifact holds it."""

    tensors: Tensors
    settings: Mapping[str, Any]


class EmbeddingScores(Protocol):
    """What the methods of screens make of their guards: scores of embeddings."""

    @property
    def reads_sentences(self) -> bool:
        """Whether any of them reads single sentences of a text too."""

    def scores(self, embeddings: Floats, sentence: Flags | None = None) -> Floats:
        """Probabilities `[n, guards]`, float32, of `embeddings [n, width]`; `sentence [n]` marks
        those of single sentences."""


class EmbeddingHeads:
    """Heads of several screens, computed in one product. Raises ValueError for unlike widths."""

    def __init__(self, heads: Sequence[EmbeddingHead]) -> None:
        widths = {head.width for head in heads}
        if len(widths) != 1:
            raise ValueError(
                f"heads that are scored together must have one width, not {sorted(widths)}"
            )
        (self.width,) = widths
        self._heads = tuple(heads)
        self._windows = _Stack(heads)
        self._sentences = _Stack([head.sentence for head in heads])
        self.reads_sentences = any(head.sentence is not None for head in heads)

    def __len__(self) -> int:
        return len(self._heads)

    def logits(self, embeddings: Floats, sentence: Flags | None = None) -> Floats:
        """Logits `[n, heads]` of `embeddings [n, width]`, before calibration. `sentence [n]` marks
        those of single sentences; where a head does not read them, they are -infinity."""
        if embeddings.ndim != 2 or embeddings.shape[1] != self.width:
            raise ValueError(f"embeddings must be [n, {self.width}], not {embeddings.shape}")
        if sentence is None or not sentence.any():
            return self._windows.logits(embeddings)
        logits = np.empty((len(embeddings), len(self)), np.float32)
        logits[~sentence] = self._windows.logits(embeddings[~sentence])
        logits[sentence] = self._sentences.logits(embeddings[sentence])
        return logits

    def scores(self, embeddings: Floats, sentence: Flags | None = None) -> Floats:
        """Probabilities `[n, heads]`, float32, of `embeddings [n, width]`, of which `sentence [n]`
        marks those of single sentences."""
        pairs = zip(self._heads, self.logits(embeddings, sentence).T, strict=True)
        return np.stack([head.probabilities(logits) for head, logits in pairs], axis=1)


class _Stack:
    """Heads in one product; where there is none in a column, its logit is -infinity."""

    def __init__(self, heads: Sequence[EmbeddingHead | None]) -> None:
        self._columns = [(at, head) for at, head in enumerate(heads) if head is not None]
        self._count = len(heads)
        directions = [head.directions for _, head in self._columns]
        self._directions = np.concatenate(directions).T.copy() if directions else None
        self._ends = np.cumsum([len(rows) for rows in directions])[:-1]

    def logits(self, embeddings: Floats) -> Floats:
        """`[n, heads]` of `embeddings [n, width]`."""
        logits = np.full((len(embeddings), self._count), -np.inf, np.float32)
        if self._directions is not None:
            projections = np.split(embeddings @ self._directions, self._ends, axis=1)
            for (at, head), projected in zip(self._columns, projections, strict=True):
                logits[:, at] = head.logits(projected)
        return logits


def stack(guards: Sequence[Fitted], device: Any = "cpu") -> EmbeddingHeads:
    """The heads of fitted screens, in one product on the CPU, whatever the `device`.

    Raises ValueError for a screen that makes no head, and for heads of unlike widths.
    """
    return EmbeddingHeads(
        [EmbeddingHead.from_tensors(guard.tensors, guard.settings) for guard in guards]
    )


def _sentence_tensors(sentence: EmbeddingHead | None) -> dict[str, Floats]:
    """A logistic head is one tensor, its weights and then its bias."""
    if sentence is None:
        return {}
    if sentence.kind == "logistic":
        return {_SENTENCE: np.concatenate([sentence.parts["weight"][0], sentence.parts["bias"]])}
    return {f"{_SENTENCE}_{name}": part for name, part in sentence.parts.items()}


def _sentence_of(tensors: Tensors, settings: Mapping[str, Any]) -> EmbeddingHead | None:
    """The head for single sentences of an artifact, None where it has none."""
    kind = settings.get(_SENTENCE_KIND)
    if kind is None:
        direction = tensors.get(_SENTENCE)
        if direction is None and not any(name.startswith(_SENTENCE) for name in tensors):
            return None
        if direction is None:
            raise ValueError(f"a head for single sentences has no {_SENTENCE_KIND}: fit it again")
        if direction.ndim != 1 or len(direction) < 2:
            raise ValueError(f"{_SENTENCE} must be [width + 1], not {direction.shape}")
        return EmbeddingHead("logistic", {"weight": direction[None, :-1], "bias": direction[-1:]})
    names = {name: f"{_SENTENCE}_{name}" for name in _PARTS["kernel"]}
    if kind != "kernel" or not {*names.values()} <= tensors.keys():
        raise ValueError(
            f"a head for single sentences of kind {kind!r} holds {', '.join(names.values())}: fit "
            "it again"
        )
    return EmbeddingHead(
        "kernel",
        {name: tensors[stored] for name, stored in names.items()},
        sharpness=_number(settings, _SENTENCE_SHARPNESS),
    )


def _check(head: EmbeddingHead) -> None:
    shapes = {name: head.parts[name].shape for name in _PARTS[head.kind]}
    matrices = [name for name in _MATRICES if name in shapes]
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
            raise ValueError(f"{name} of a head must be above zero, not {value}")
    if head.sentence is not None and head.sentence.width != width:
        raise ValueError(
            f"{_SENTENCE} must be for embeddings of width {width}, not {head.sentence.width}"
        )
    if head.table is not None:
        _check_table(head.table)


def _check_table(table: Floats) -> None:
    logits, probabilities = table
    if len(logits) < 2 or not np.isfinite(table).all():
        raise ValueError("a calibration table must have at least two finite points")
    if (np.diff(logits) <= 0).any() or (np.diff(probabilities) <= 0).any():
        raise ValueError("logits and probabilities of a calibration table must rise strictly")
    if probabilities[0] < 0 or probabilities[-1] > 1:
        raise ValueError("probabilities of a calibration table must be between 0 and 1")


def _number(settings: Mapping[str, Any], name: str) -> float:
    value = settings.get(name, 1.0)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{name} of a head must be a number, not {value!r}")
    return float(value)


def _logsumexp(values: Floats) -> Floats:
    top = values.max(axis=1)
    result: Floats = top + np.log(np.exp(values - top[:, None]).sum(axis=1))
    return result
