"""The report of a steering guard's fit, as JSON and as a page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from guard.artifact import ArtifactMeta
from guard.fitting.judgement import Remedies, judgement, judgement_grid
from guard.fitting.steering.directions import Trial
from guard.fitting.steering.fit import SteerFit
from guard.reporting import plots
from guard.reporting.page import Grid, Images, Part, Plot, Tile, render
from guard.reporting.pngs import png, uri
from guard.reporting.values import rows

LEAKS, GARBLED = 0.5, 3.0
"""The share of leaks that remain, and the perplexity in multiples of the bare one, over which a
guard is not usable."""


def as_json(fit: SteerFit, meta: ArtifactMeta, took_s: float) -> dict[str, Any]:
    """All figures of a fit, with the scores that the plots show."""
    report: dict[str, Any] = {
        "method": meta.method,
        "concept": meta.concept,
        "model": meta.model.model_dump(mode="json"),
        "tensors_sha256": meta.tensors_sha256,
        "settings": meta.settings,
        "calibration": meta.calibration,
        "trials": [
            {
                "act_layers": list(trial.act_layers),
                "strength": trial.strength,
                "leak_rate": trial.leak_rate,
                "perplexity": trial.perplexity,
                "looping": trial.looping,
                **_recognised(trial),
                "chosen": trial.chosen,
            }
            for trial in fit.trials
        ],
        "judgement": judged(fit),
        **fit.held_out.as_json(),
        "scores": {"forget": fit.gate.forget, "far": fit.gate.far, "near": fit.gate.near},
        "took_s": round(took_s, 1),
    }
    if fit.parts is not None:
        report["gates_tried"] = [gate.summary for gate in fit.tried]
        report["parts"] = fit.parts
    if fit.visual is not None:
        report["perturbed"] = [
            {"prompt": row.prompt, "image": list(row.image), "before": i.before, "after": i.after}
            for row, i in zip(fit.visual.rows, fit.visual.images, strict=True)
        ]
    if fit.subjects is not None:
        report["subjects"] = list(fit.subjects.names)
    return report


def judged(fit: SteerFit) -> str:
    """Whether the guard is usable, and what to do where it is not: one line."""
    figures = fit.calibration
    faults = []
    if figures["leak_rate"] > LEAKS:
        faults.append(
            f"{figures['leak_rate']:.0%} of the answers that the bare model leaks still leak; add "
            "forget prompts to the train split, or ask for a higher --near-fpr"
        )
    if figures["guarded_perplexity"] > GARBLED * figures["bare_perplexity"]:
        faults.append("guarded answers are garbled; set a lower strength in config.toml")
    remedies = Remedies(
        add="add prompts like these to the train split, or ask for a higher --near-fpr",
        instead='begin with `guard new "NAME"`, which finds what belongs to it',
        unusable=tuple(faults),
    )
    return judgement(fit.held_out, remedies, quick=fit.draft)


def _recognised(trial: Trial) -> dict[str, float]:
    """The figures of a trial whose prompts have distractors."""
    if trial.recognised is None:
        return {}
    return {"recognised": trial.recognised, "chance": trial.chance}


def as_page(fit: SteerFit, meta: ArtifactMeta) -> str:
    """The page: gate histograms, leaks against retain damage for each strength, all trials."""
    calibration = fit.calibration
    far, near = calibration["false_positive_rate"], calibration["near_false_positive_rate"]
    tiles = [
        Tile("Bare leaks that remain", _percent(calibration["leak_rate"])),
        Tile("Far answers identical", _percent(calibration["far_identical"])),
        Tile("Near answers identical", _percent(calibration["near_identical"])),
        Tile(
            "Perplexity, guarded / bare",
            f"{calibration['guarded_perplexity'] / calibration['bare_perplexity']:.2f}",
        ),
    ]
    thresholds = {"prompt threshold": fit.gate.threshold}
    if fit.recheck is not None:
        thresholds["answer threshold"] = fit.recheck
    scores = {"far": fit.gate.far, "near": fit.gate.near, "forget": fit.gate.forget}
    named = ("facts recognised", "by chance") if _recognised(fit.trials[0]) else ()
    parts: list[Part] = [
        judgement_grid(judged(fit)),
        Plot(
            "Gate scores",
            plots.histograms(scores, thresholds),
            f"Validation split: {len(fit.gate.forget)} forget, {len(fit.gate.near)} near and "
            f"{len(fit.gate.far)} far prompts. The thresholds keep a false-positive rate of "
            f"{far:.1%} on far and {near:.1%} on near prompts over the whole request.",
        ),
        Plot(
            "Leaks against retain damage",
            _trade_off(fit),
            "For each strength at the chosen layers, as the prompt threshold moves: a prompt under "
            "the threshold counts as leaked, a retain prompt over it as damaged. Dots: the chosen "
            "threshold. Checking the answer again catches leaks that are not counted here.",
        ),
        Grid(
            "Layers and strengths tried",
            ("act layers", "strength", "leak rate", "perplexity", "loops", *named),
            [
                (
                    ", ".join(map(str, trial.act_layers)),
                    f"{trial.strength:g}",
                    _percent(trial.leak_rate),
                    f"{trial.perplexity:.2f}",
                    _percent(trial.looping),
                    *map(_percent, _recognised(trial).values()),
                )
                for trial in fit.trials
            ],
            f"On {len(fit.trial_scores)} validation prompts on which the bare model leaks; the "
            f"guard fires on each. Bare perplexity {calibration['bare_perplexity']:.2f}.",
            frozenset(i for i, trial in enumerate(fit.trials) if trial.chosen),
        ),
        *_of_images(fit),
        *fit.held_out.grids(),
        Grid("Calibration", ("figure", "value"), rows(calibration)),
        Grid("Settings", ("setting", "value"), rows(meta.settings)),
    ]
    subtitle = (
        f"Steering guard for {meta.model.name} ({meta.model.architecture}), fitted "
        f"{meta.created.isoformat()}; tensors {meta.tensors_sha256[:12]}"
    )
    return render(f"Fit of {meta.concept}", subtitle, tiles, parts)


def _of_images(fit: SteerFit) -> list[Part]:
    """What the page of a fit with images has beside that of texts."""
    if fit.parts is None:
        return []
    chosen = (fit.guard.sense_layers, fit.guard.tokens)
    tried = [gate.summary for gate in fit.tried]
    parts: list[Part] = [
        Grid(
            "Gates tried",
            ("layers", "tokens", "forget prompts caught", "far fired", "near fired"),
            [
                (
                    ", ".join(map(str, gate["layers"])),
                    str(gate["tokens"]),
                    *(_percent(gate[key]) for key in ("recall", "far_fired", "near_fired")),
                )
                for gate in tried
            ],
            "One gate for all forget prompts, at the thresholds that keep the rates, on the "
            "validation split: which tokens of a prompt count.",
            frozenset(
                i for i, gate in enumerate(fit.tried) if (gate.layers, gate.tokens) == chosen
            ),
        )
    ]
    if fit.visual is not None:
        parts.append(
            Images(
                "Perturbed images",
                ("clean", "perturbed"),
                [
                    (
                        row.prompt,
                        (
                            (uri(png(i.clean)), f"-log p {i.before:.2f}"),
                            (uri(png(i.perturbed)), f"-log p {i.after:.2f}"),
                        ),
                    )
                    for row, i in zip(fit.visual.rows, fit.visual.images, strict=True)
                ],
                "Recall inputs of the visual part of the direction: the image is changed within "
                "its bounds so that the recall answer is likelier (-log p of a token of it).",
            )
        )
    return parts


def _trade_off(fit: SteerFit) -> str:
    chosen = next(trial for trial in fit.trials if trial.chosen)
    trials = [trial for trial in fit.trials if trial.act_layers == chosen.act_layers]
    retain = np.asarray([*fit.gate.far, *fit.gate.near])
    scores = np.asarray(fit.trial_scores)
    steps = np.unique(np.concatenate([retain, scores]))
    thresholds = [float(step) for step in steps[retain_damage(retain, steps) <= 0.2]]
    lines, points = {}, {}
    for trial in trials:
        name = f"strength {trial.strength:g}"
        leaks = leak_rates(trial, scores, thresholds)
        lines[name] = (retain_damage(retain, np.asarray(thresholds)).tolist(), leaks)
        threshold = [fit.gate.threshold]
        damage = float(retain_damage(retain, np.asarray(threshold))[0])
        points[name] = (damage, leak_rates(trial, scores, threshold)[0])
    return plots.curves(lines, points, x="retain prompts that change, %", y="leak rate, %")


def retain_damage(scores: Any, thresholds: Any) -> Any:
    """Share of retain `scores [n]` over each of `thresholds [k]`: `[k]`."""
    return (scores[None, :] > thresholds[:, None]).mean(1)


def leak_rates(trial: Trial, scores: Any, thresholds: Sequence[float]) -> list[float]:
    """Leak rate of a trial's prompts if only those over the threshold had fired."""
    leaked = np.asarray(trial.leaked)
    return [float(np.where(scores > threshold, leaked, True).mean()) for threshold in thresholds]


def _percent(share: float) -> str:
    return f"{share:.1%}"
