"""The judgement of a fit of an image model's guard, and what its report lists."""

from __future__ import annotations

from datetime import date
from typing import Any

import numpy as np
import pytest

from guard.artifact import Artifact, ArtifactMeta, FittedModel
from guard.data.concept import Concept
from guard.fitting.images.report import UNGATED, as_json, as_page, judged
from guard.fitting.judgement import HeldOut
from guard.fitting.prompts.rates import Calibrated, by_kind

CONCEPT = Concept.model_validate(
    {
        "name": "animal/dog",
        "phrases": {"train": ["a dog", "a mutt"], "validation": ["a pup"]},
        "hard_negatives": ["a hot dog", "b", "c", "d", "e", "f"],
        "replacements": ["a cat"],
    }
)


def fitted(
    *scores: float, far: float = 0.01, method: str = "cgce", trials: Any = None, **more: Any
) -> Calibrated:
    texts = [("a dog", "a mutt", "a pup")[i % 3] + f" at the beach {i}" for i in range(len(scores))]
    texts, kinds = [*texts, "a cat"], ["unsafe"] * len(scores) + ["far"]
    held_out = HeldOut.of(0.5, texts, kinds, [*scores, 0.6])
    calibration: dict[str, Any] = {
        "recall": held_out.fired("unsafe").value,
        "far_fired": far,
        "false_positive_rate": 0.01,
        **more,
    }
    if trials:
        calibration["windows"] = trials
    meta = ArtifactMeta(
        method=method,
        concept=CONCEPT.name,
        created=date(2026, 1, 1),
        model=FittedModel(name="m", architecture="a", fingerprint="f", layers=1, width=1),
        seams=("embedding",),
        settings={"threshold": 0.5},
        calibration=calibration,
    )
    artifact = Artifact(meta, {"x": np.zeros(1, np.float32)})
    return Calibrated(artifact, by_kind([*scores, 0.6], kinds), held_out)


@pytest.mark.parametrize(
    ("fit", "parts"),
    [
        (fitted(*[0.9] * 12), ("usable",)),
        # phrases are named, not each prompt
        (fitted(0.9, 0.1, 0.1, 0.9, 0.9, 0.9), ("usable draft: misses 'a mutt', 'a pup'; add p",)),
        (fitted(0.9, 0.1, 0.1), ("not usable: fires on 1 of 3", "a higher --count")),
        (fitted(0.1, 0.1, 0.1, far=0.0), ("its hard negatives score as high", "there are 6")),
        (fitted(0.9, 0.9, 0.9, resolved=0.2), ("not usable: refines 20%", "--steps")),
        # nothing fired that could have been refined
        (fitted(0.1, 0.1, 0.1, resolved=0.0), ("not usable: fires on 0 of 3",)),
        (fitted(0.9, 0.1, 0.9, method="latents"), ("usable draft", "generate more images")),
        (fitted(0.9, 0.1, 0.1, method="safree"), ("`guard fit cgce`",)),
    ],
)
def test_a_judgement_says_what_to_do(fit: Calibrated, parts: tuple[str, ...]) -> None:
    line = judged(fit, CONCEPT)
    assert line.startswith(parts[0]) or parts[0] in line
    assert all(part in line for part in parts)


def test_a_guard_without_a_gate_was_not_measured() -> None:
    fit = fitted(0.9)
    assert judged(Calibrated(fit.artifact, {}), CONCEPT) == UNGATED
    assert "was fitted" not in as_page(Calibrated(fit.artifact, {}), UNGATED)


def test_json_and_page_list_what_was_missed_and_hit() -> None:
    fit = fitted(0.9, 0.1, 0.9, trials=[{"first_look": 1, "auc": 0.5}])
    report, page = as_json(fit, "usable", 1.0), as_page(fit, "usable", {"windows": "Inspections"})
    assert report["missed"] == [{"prompt": "a mutt at the beach 1", "kind": "unsafe", "score": 0.1}]
    assert report["hit"] == [{"prompt": "a cat", "kind": "far", "score": 0.6}]
    assert "a mutt at the beach 1" in page and "Inspections" in page and "first look" in page
