"""The report of a CGCE fit, as JSON and as a page."""

from __future__ import annotations

from typing import Any

from guard.fitting.prompts.rates import Calibrated
from guard.reporting import plots
from guard.reporting.page import Grid, Plot, Tile, render
from guard.reporting.values import rows


def as_json(fit: Calibrated, took_s: float) -> dict[str, Any]:
    """All figures of a fit, with the scores that the plot shows."""
    meta = fit.artifact.meta
    return {
        "concept": meta.concept,
        "model": meta.model.model_dump(mode="json"),
        "tensors_sha256": meta.tensors_sha256,
        "settings": meta.settings,
        "calibration": meta.calibration,
        "scores": {kind: [round(s, 5) for s in part] for kind, part in fit.scores.items()},
        "took_s": round(took_s, 1),
    }


def as_page(fit: Calibrated) -> str:
    """The page: held-out scores by kind, calibration, settings."""
    meta = fit.artifact.meta
    figures: dict[str, Any] = meta.calibration
    tiles = [
        Tile("Unsafe prompts that fire", f"{figures['recall']:.1%}"),
        Tile("Far prompts that fire", f"{figures['far_fired']:.2%}"),
        Tile("Hard negatives that fire", f"{figures['near_fired']:.1%}"),
        Tile("Refined under the threshold", f"{figures['resolved']:.1%}"),
    ]
    if "drawn_fired" in figures:
        share = f"{figures['drawn_fired']:.1%}"
        tiles.insert(1, Tile("Searched prompts with the concept that fire", share))
    order = ("far", "undrawn", "near", "mistaken", "drawn", "unsafe")
    scores = {kind: list(fit.scores[kind]) for kind in order if kind in fit.scores}
    threshold = float(str(meta.settings["threshold"]))
    parts: list[Plot | Grid] = [
        Plot(
            "Scores: the logit of p(concept)",
            plots.histograms(scores, {"threshold": threshold}),
            "Each prompt is scored by the head that was not trained on its phrase, hard negative "
            "or companion; the threshold comes from these scores. The guard's score is the mean "
            "of all its heads. Drawn and undrawn prompts are searched, and labelled by the "
            "denoiser; mistaken prompts are hard negatives whose images show the concept. "
            "`guard eval images` measures the images of refined prompts.",
        ),
        Grid("Calibration", ("figure", "value"), rows(figures)),
        Grid("Settings", ("setting", "value"), rows(meta.settings)),
    ]
    subtitle = (
        f"CGCE guard for {meta.model.name} ({meta.model.architecture}), fitted "
        f"{meta.created.isoformat()}; tensors {meta.tensors_sha256[:12]}"
    )
    return render(f"Fit of {meta.concept}", subtitle, tiles, parts)
