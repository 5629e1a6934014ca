"""The first stage of a screen of texts, and how much of recall it may cost.

The stage learns the head's own logits, by heads that have not learnt from the text. Its cut comes
from estimates of five stages, each of which did not learn from a fifth of the families: of the
unsafe texts on which the head fires, at most LOST may be taken for clear (split conformal, as the
threshold).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from classifiers.embeddings.first_stage import FirstStage, FirstStages
from classifiers.embeddings.heads import EmbeddingHead, EmbeddingHeads, Floats
from classifiers.embeddings.training import first_stage as train_stage
from guard.artifact import Artifact
from guard.errors import DataError
from guard.fitting.screens.folds import FOLDS, Example, Indices
from guard.fitting.screens.windows import TextWindows

LOST = 0.01
"""The share of the texts on which a head fires that its first stage may take for clear."""
FEWEST = math.ceil(1 / LOST) - 1
"""Unsafe texts on which the head fires from which on such a share can be told."""
_BELOW, _ABOVE = 8.0, 4.0
"""How far from the threshold logits are told apart: further away they all mean the same."""


@dataclass(frozen=True, slots=True)
class FirstStageFit:
    """`stage` is None where too few unsafe texts fire. `figures` are for the artifact and the
    report."""

    stage: FirstStage | None
    figures: Mapping[str, Any]


def fit_first_stage(
    examples: Sequence[Example],
    windows: TextWindows,
    folds: Indices,
    head: EmbeddingHead,
    threshold: float,
    logits: Floats,
) -> FirstStageFit:
    """The first stage of a `head` whose `threshold` is a probability; `folds` are those of its fit,
    -1 for held-out texts. `logits [windows]` are the head's, best by what has not learnt from the
    texts: what has is surer of them than of others."""
    unsafe = np.array([example.unsafe for example in examples])
    fires = head.probabilities(logits) > threshold
    # the encoder reads whatever has several readings
    told = windows.read_once
    caught = unsafe & told & (windows.highest(fires.astype(np.float32)) == 1)
    count = int((caught & (folds >= 0)).sum())
    allowed = int(LOST * (count + 1))
    if not allowed:
        return FirstStageFit(None, {"unsafe_that_fire": count, "needed": FEWEST})
    border = float(logits[fires].min())
    targets = np.clip(logits, border - _BELOW, border + _ABOVE)

    def trained(texts: Indices) -> FirstStage:
        chosen = windows.rows_of(texts)
        text = windows.text[chosen]
        weights = 1 / np.bincount(text)[text]
        known = np.zeros(windows.vocabulary, np.bool_)
        known[
            np.concatenate([windows.ids[window] for window in chosen.tolist()]).astype(np.intp)
        ] = True
        return train_stage(windows.static[chosen], targets[chosen], unsafe[text], weights, known)

    train, fold_of = np.flatnonzero(folds >= 0), folds[windows.text]
    estimates, clearing = np.empty((2, len(logits)), np.float32)

    def estimate(stage: FirstStage, chosen: NDArray[np.bool_]) -> None:
        stages, static = FirstStages([stage], [None], [1.0]), windows.static[chosen]
        ids = [windows.ids[window] for window in np.flatnonzero(chosen).tolist()]
        clearing[chosen] = stages.estimates(static, ids)[:, 0]
        # a stage without a fifth of the texts knows fewer words: the cut does not count on those
        estimates[chosen] = stages.estimates(static, [[]] * len(ids))[:, 0]

    for fold in range(FOLDS):
        estimate(trained(train[folds[train] != fold]), fold_of == fold)
    stage = trained(train)
    estimate(stage, fold_of < 0)
    # of the windows that fire one that is encoded is enough
    seen = windows.highest(np.where(fires, estimates, -np.inf).astype(np.float32))
    cut = float(np.sort(seen[caught & (folds >= 0)])[allowed - 1])
    seen = windows.highest(np.where(fires, clearing, -np.inf).astype(np.float32))
    cleared = told & (windows.highest(clearing) < cut)
    held_out = caught & (folds < 0)
    sources = dict.fromkeys(row.source for row in examples if not row.unsafe)
    of_source = {
        name: np.array([row.source == name and not row.unsafe for row in examples])
        for name in sources
    }
    figures = {
        "unsafe_that_fire": count,
        "lost_at_most": LOST,
        "held_out": {"fire": int(held_out.sum()), "lost": int((held_out & (seen < cut)).sum())},
        "benign_cleared": {
            name: round(float(cleared[rows].mean()), 3) for name, rows in of_source.items()
        },
    }
    return FirstStageFit(replace(stage, cut=min(cut, border)), figures)


def with_first_stage(
    artifact: Artifact, examples: Sequence[Example], windows: TextWindows, folds: Indices
) -> Artifact:
    """A fitted screen with a first stage made anew: its head and its threshold stay as they are.

    Raises ValueError where the artifact is no head, and DataError where too few texts fire.
    """
    meta = artifact.meta
    head = EmbeddingHead.from_tensors(artifact.tensors, meta.settings)
    logits = EmbeddingHeads([head]).logits(windows.embeddings, windows.sentence)[:, 0]
    threshold = float(str(meta.settings["threshold"]))
    fitted = fit_first_stage(examples, windows, folds, head, threshold, logits)
    if fitted.stage is None:
        raise DataError(
            f"a first stage needs {FEWEST} unsafe texts that fire, there are "
            f"{fitted.figures['unsafe_that_fire']}: add some"
        )
    changed = {
        "settings": {**meta.settings, **fitted.stage.settings()},
        "calibration": {**meta.calibration, "first_stage": dict(fitted.figures)},
        "tensors_sha256": "",
    }
    return Artifact(meta.model_copy(update=changed), head.tensors() | fitted.stage.tensors())
