"""The report of a fit of an image model's guard, as JSON and as a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from guard.data.concept import Concept
from guard.fitting.judgement import CAUGHT, HALF, Remedies, judgement, judgement_grid
from guard.fitting.prompts.rates import Calibrated
from guard.reporting import plots, values
from guard.reporting.page import Grid, Plot, Tile, render
from guard.reporting.values import rows

UNGATED = (
    "a draft: acts on every image, and nothing was measured; ask for one image bare and guarded "
    "with `guard try`, or fit with --gated"
)
_ADD = "add phrases like these, or ask for a higher --near-fpr"
_INSTEAD = "`guard fit cgce`, whose classifiers tell more apart"
_REMEDIES = {
    "cgce": Remedies(_ADD, "a higher --count"),
    "latents": Remedies("generate more images with a higher --count", "more --phrases"),
    "irece": Remedies("generate more images with a higher --count", "more --steps"),
}
_SCORES = {
    "cgce": "The logit of p(concept), by the head that was not trained on the prompt's phrase, "
    "hard negative or companion; the guard's score is the mean of all its heads. Drawn and undrawn "
    "prompts are searched, and labelled by the denoiser; mistaken prompts are hard negatives whose "
    "images show the concept. `guard eval images` measures the images of refined prompts.",
    "latents": "The logit of p(concept) of the finished image of each prompt, by the classifier "
    "that was not trained on it.",
    "irece": "The highest logit of p(concept) at an inspection of each prompt's unfinished image, "
    "by the classifier that was not trained on it.",
}
_SCORE = "The guard's score of prompts that were not fitted on."
_ORDER = ("far", "undrawn", "near", "mistaken", "drawn", "given", "unsafe")


def judged(fit: Calibrated, concept: Concept, *, quick: bool = False) -> str:
    """Whether the guard is usable, and what to do where it is not: one line."""
    if not fit.held_out.prompts:
        return UNGATED
    meta = fit.artifact.meta
    figures: dict[str, Any] = meta.calibration
    remedies = _REMEDIES.get(meta.method, Remedies(_ADD, _INSTEAD))
    recall, resolved = figures["recall"], figures.get("resolved", 1.0)
    if recall < CAUGHT and figures["far_fired"] < figures["false_positive_rate"] / 2:
        # what holds the threshold up are the hard negatives
        hard = len(concept.hard_negatives)
        near = f"its hard negatives score as high: give more of each kind (there are {hard})"
        remedies = Remedies(f"{near}, or ask for a higher --near-fpr", remedies.instead)
    if recall >= HALF and resolved < HALF:
        fault = f"refines {resolved:.0%} of the prompts that fire to under the threshold"
        remedies = Remedies(remedies.add, remedies.instead, (f"{fault}; give more --steps",))
    phrases = (*concept.phrases.train, *concept.phrases.validation)
    return judgement(fit.held_out, remedies, phrases=phrases, quick=quick)


def as_json(fit: Calibrated, line: str, took_s: float) -> dict[str, Any]:
    """All figures of a fit, with the scores that the plot shows; `line` is its judgement."""
    meta = fit.artifact.meta
    return {
        "method": meta.method,
        "concept": meta.concept,
        "judgement": line,
        "model": meta.model.model_dump(mode="json"),
        "tensors_sha256": meta.tensors_sha256,
        "settings": meta.settings,
        "calibration": meta.calibration,
        **fit.held_out.as_json(),
        "scores": {kind: [round(s, 5) for s in part] for kind, part in fit.scores.items()},
        "took_s": round(took_s, 1),
    }


def as_page(fit: Calibrated, line: str, trials: Mapping[str, str] | None = None) -> str:
    """The page: judgement, held-out scores by kind, prompts that were missed or wrongly hit,
    calibration, settings. `trials` are titles of the figures that are tables of trials."""
    meta = fit.artifact.meta
    figures: dict[str, Any] = meta.calibration
    parts: list[Plot | Grid] = [judgement_grid(line)]
    threshold = float(str(meta.settings["threshold"]))
    scores = {kind: list(fit.scores[kind]) for kind in _ORDER if fit.scores.get(kind)}
    if scores:
        plot = plots.histograms(scores, {"threshold": threshold})
        parts.append(Plot("Scores of held-out prompts", plot, _SCORES.get(meta.method, _SCORE)))
        parts += fit.held_out.grids()
    trials = trials or {}
    parts += [_trials(title, figures[name]) for name, title in trials.items() if figures.get(name)]
    plain = {name: figure for name, figure in figures.items() if name not in trials}
    parts += [
        Grid("Calibration", ("figure", "value"), rows(plain)),
        Grid("Settings", ("setting", "value"), rows(meta.settings)),
    ]
    subtitle = (
        f"{meta.method} guard for {meta.model.name} ({meta.model.architecture}), fitted "
        f"{meta.created.isoformat()}; tensors {meta.tensors_sha256[:12]}"
    )
    return render(f"Fit of {meta.concept}", subtitle, _tiles(figures), parts)


def _tiles(figures: Mapping[str, Any]) -> list[Tile]:
    labels = (
        ("recall", "Prompts of the concept that fire", ".1%"),
        ("drawn_fired", "Searched prompts with the concept that fire", ".1%"),
        ("far_fired", "Far prompts that fire", ".2%"),
        ("near_fired", "Hard negatives that fire", ".1%"),
        ("resolved", "Refined under the threshold", ".1%"),
    )
    return [
        Tile(label, format(figures[name], style))
        for name, label, style in labels
        if name in figures
    ]


def _trials(title: str, found: Sequence[Mapping[str, Any]]) -> Grid:
    return Grid(
        title,
        [name.replace("_", " ") for name in found[0]],
        [[value for _, value in values.rows(row)] for row in found],
    )
