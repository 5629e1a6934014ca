"""Training of heads on embeddings with scikit-learn, and calibration of their logits."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from classifiers.embeddings.first_stage import FirstStage
from classifiers.embeddings.heads import EmbeddingHead, Floats, Kind

Calibration = Literal["temperature", "isotonic"]
Flags = NDArray[np.bool_]

_MEMBERS, _HIDDEN = 8, 16
"""An mlp is the mean of _MEMBERS perceptrons of _HIDDEN units, trained from other random states:
one alone depends on luck. Side by side in one hidden layer they form one perceptron."""

_PROTOTYPES = 24
_SHARPNESS = 16.0
_DAMPING = 10.0
"""The inverse of the ridge penalty. Embeddings have unit length, so the weights must be large."""
_SENTENCE_DAMPING = 3.0
"""As _DAMPING, of single sentences, and of a kernel for them."""
_KERNEL_SHARPNESS, _SENTENCE_SHARPNESS = 2.0, 4.0
"""How fast two embeddings are strangers as their cosine falls."""
_MARGIN = 4.0
"""The logit at the margin of a kernel, where a logistic head's lies too."""
_MOST_KERNEL = 40_000
"""Embeddings that a kernel learns from: the time of its training is quadratic in them."""
_SENTENCES = 4.0
"""How much all benign sentences weigh beside all windows of benign texts."""
_RIDGE = 1.0
"""The ridge penalty of a first stage."""


def train(
    kind: Kind, embeddings: Floats, unsafe: Flags, weights: NDArray[np.float64], seed: int
) -> EmbeddingHead:
    """A head before calibration, from `embeddings [n, width]`, `unsafe [n]` and `weights [n]`.

    The weights are scaled so that both classes weigh the same. Raises ValueError where there is
    only one class.
    """
    if unsafe.all() or not unsafe.any():
        raise ValueError("a head needs unsafe and benign examples to learn from")
    balanced = _balanced(unsafe, weights)
    if kind == "logistic":
        return _logistic(embeddings, unsafe, balanced)
    if kind == "kernel":
        return _kernel(embeddings, unsafe, weights, _DAMPING, _KERNEL_SHARPNESS, seed)
    if kind == "mlp":
        return _mlp(embeddings, unsafe, balanced, seed)
    return _prototypes(embeddings, unsafe, balanced, seed)


def train_sentence(
    kind: Kind,
    embeddings: Floats,
    unsafe: Flags,
    sentence: Flags,
    weights: NDArray[np.float64],
    seed: int,
) -> EmbeddingHead:
    """A head for single sentences: it learns from windows and, marked by `sentence [n]`, from
    sentences of benign texts. It is a kernel beside a head of this `kind`, else logistic.

    Which sentence of an unsafe text says what is unsafe is not known: leave them out.
    """
    weights = weights.copy()
    if sentence.any():
        benign_windows = weights[~unsafe & ~sentence].sum()
        weights[sentence] *= _SENTENCES * benign_windows / weights[sentence].sum()
    if kind == "kernel":
        sharpness = _SENTENCE_SHARPNESS
        return _kernel(embeddings, unsafe, weights, _SENTENCE_DAMPING, sharpness, seed)
    return _logistic(embeddings, unsafe, _balanced(unsafe, weights), _SENTENCE_DAMPING)


def first_stage(
    static: Floats,
    logits: Floats,
    unsafe: Flags,
    weights: NDArray[np.float64],
    known: Flags,
) -> FirstStage:
    """A first stage that estimates a head's `logits [n]` from static embeddings `[n, width]`: a
    ridge regression in which both classes weigh the same. Its cut clears nothing yet; `known
    [vocabulary]` are the tokens of its texts."""
    from sklearn.linear_model import Ridge

    mean = static.mean(axis=0)
    centred = static - mean
    centred /= np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-6)
    fitted = Ridge(alpha=_RIDGE).fit(centred, logits, _balanced(unsafe, weights))
    weight, bias = np.asarray(fitted.coef_, np.float32), float(fitted.intercept_)
    return FirstStage(weight, bias, np.asarray(mean, np.float32), known, -np.inf)


def calibrated(
    head: EmbeddingHead, logits: Floats, unsafe: Flags, how: Calibration
) -> EmbeddingHead:
    """The head with probabilities fitted to held-out `logits [n]`, both classes weighing the same.

    An isotonic table is centred (Oron and Flournoy 2017): each level is placed at its mean logit,
    so that the table rises between levels. Raises ValueError where there is only one class.
    """
    if unsafe.all() or not unsafe.any():
        raise ValueError(
            "a head needs held-out examples of both kinds for its calibration: unsafe and benign"
        )
    balanced = np.where(unsafe, 1 / unsafe.sum(), 1 / (~unsafe).sum())
    if how == "temperature":
        return replace(head, temperature=_temperature(logits, unsafe, balanced), table=None)
    from sklearn.isotonic import IsotonicRegression

    levels = IsotonicRegression(y_min=0, y_max=1).fit(logits, unsafe, balanced).predict(logits)
    values = np.unique(levels)
    centres = [
        float(np.average(logits[levels == v], weights=balanced[levels == v])) for v in values
    ]
    # beyond the outermost levels the table still rises, so that no two scores there are equal
    reach = max(float(np.ptp(logits)), 1.0)
    points = {centres[0] - reach: 0.0, centres[-1] + reach: 1.0}
    points |= dict(zip(centres, np.clip(values, 1e-3, 1 - 1e-3).tolist(), strict=True))
    table = np.array(sorted(points.items()), np.float32).T
    return replace(head, table=_rising(table), temperature=1.0)


def _balanced(unsafe: Flags, weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """The weights, scaled so that both classes weigh the same."""
    shares = np.where(unsafe, weights / weights[unsafe].sum(), weights / weights[~unsafe].sum())
    return np.asarray(shares * len(unsafe) / 2)


def _logistic(
    embeddings: Floats, unsafe: Flags, weights: NDArray[np.float64], damping: float = _DAMPING
) -> EmbeddingHead:
    from sklearn.linear_model import LogisticRegression

    fitted = LogisticRegression(C=damping, max_iter=2000).fit(embeddings, unsafe, weights)
    return EmbeddingHead("logistic", _float32(weight=fitted.coef_, bias=fitted.intercept_))


def _kernel(
    embeddings: Floats,
    unsafe: Flags,
    weights: NDArray[np.float64],
    damping: float,
    sharpness: float,
    seed: int,
) -> EmbeddingHead:
    """A support vector machine; of more than _MOST_KERNEL embeddings it learns from all unsafe and
    some benign ones."""
    from sklearn.svm import SVC

    if len(unsafe) > _MOST_KERNEL:
        chosen = _some(unsafe, seed)
        embeddings, unsafe, weights = embeddings[chosen], unsafe[chosen], weights[chosen]
    # the distance of unit vectors is 2 (1 - cos)
    machine = SVC(C=damping, gamma=sharpness / 2, cache_size=500)
    machine.fit(embeddings, unsafe, _balanced(unsafe, weights))
    parts = _float32(
        support=embeddings[machine.support_],
        out=_MARGIN * machine.dual_coef_[0],
        bias=_MARGIN * machine.intercept_,
    )
    return EmbeddingHead("kernel", parts, sharpness=sharpness)


def _some(unsafe: Flags, seed: int) -> NDArray[np.intp]:
    """Indices of _MOST_KERNEL embeddings at most, benign ones left out by chance first."""
    order = np.random.default_rng(seed).permutation(len(unsafe))
    return np.sort(order[np.argsort(~unsafe[order], kind="stable")][:_MOST_KERNEL])


def _mlp(
    embeddings: Floats, unsafe: Flags, weights: NDArray[np.float64], seed: int
) -> EmbeddingHead:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier

    members = []
    with warnings.catch_warnings():
        # stopping early is intended
        warnings.simplefilter("ignore", ConvergenceWarning)
        for member in range(_MEMBERS):
            net = MLPClassifier(
                (_HIDDEN,),
                alpha=1e-2,
                learning_rate_init=3e-3,
                max_iter=60,
                random_state=seed * _MEMBERS + member,
            )
            members.append(net.fit(embeddings, unsafe, sample_weight=weights))
    return EmbeddingHead(
        "mlp",
        _float32(
            hidden=np.concatenate([net.coefs_[0].T for net in members]),
            hidden_bias=np.concatenate([net.intercepts_[0] for net in members]),
            out=np.concatenate([net.coefs_[1][:, 0] for net in members]) / _MEMBERS,
            bias=np.mean([net.intercepts_[1] for net in members], axis=0),
        ),
    )


def _prototypes(
    embeddings: Floats, unsafe: Flags, weights: NDArray[np.float64], seed: int
) -> EmbeddingHead:
    from sklearn.cluster import KMeans

    def centres(rows: Flags) -> NDArray[Any]:
        count = min(_PROTOTYPES, int(rows.sum()))
        clusters = KMeans(count, random_state=seed, n_init=4).fit(
            embeddings[rows], sample_weight=weights[rows]
        )
        middle = clusters.cluster_centers_
        return np.asarray(middle / np.linalg.norm(middle, axis=1, keepdims=True))

    parts = _float32(unsafe=centres(unsafe), benign=centres(~unsafe))
    return EmbeddingHead("prototype", parts, sharpness=_SHARPNESS)


def _temperature(logits: Floats, unsafe: Flags, weights: NDArray[np.float64]) -> float:
    """The temperature of least cross entropy.

    Targets are those of Platt (1999), a little inside 0 and 1: where logits separate the classes,
    the temperature would else go to zero and all probabilities to 0 or 1, thresholds with them.
    """
    from scipy.optimize import minimize_scalar

    targets = np.where(unsafe, 1 - 1 / (unsafe.sum() + 2), 1 / ((~unsafe).sum() + 2))
    real = logits.astype(np.float64)

    def loss(log_temperature: float) -> float:
        scaled = real / np.exp(log_temperature)
        losses = targets * np.logaddexp(0, -scaled) + (1 - targets) * np.logaddexp(0, scaled)
        return float((weights * losses).sum())

    return float(np.exp(minimize_scalar(loss, bounds=(-5, 5), method="bounded").x))


def _rising(table: Floats) -> Floats:
    """The table without points that equal the one before after rounding to float32."""
    rises = (np.diff(table, axis=1) > 0).all(axis=0)
    result: Floats = table[:, np.concatenate([[True], rises])]
    return result


def _float32(**parts: NDArray[Any]) -> dict[str, Floats]:
    return {name: np.ascontiguousarray(values, np.float32) for name, values in parts.items()}
