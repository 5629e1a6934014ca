"""The report of a steering guard's fit, as JSON and as a page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from guard.artifact import ArtifactMeta
from guard.fitting.steering.directions import Trial
from guard.fitting.steering.fit import SteerFit
from guard.reporting import plots
from guard.reporting.page import Grid, Plot, Tile, render
from guard.reporting.values import rows


def as_json(fit: SteerFit, meta: ArtifactMeta, took_s: float) -> dict[str, Any]:
    """All figures of a fit, with the scores that the plots show."""
    return {
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
                "chosen": trial.chosen,
            }
            for trial in fit.trials
        ],
        "scores": {"forget": fit.gate.forget, "far": fit.gate.far, "near": fit.gate.near},
        "took_s": round(took_s, 1),
    }


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
    parts: list[Plot | Grid] = [
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
            ("act layers", "strength", "leak rate", "perplexity", "loops"),
            [
                (
                    ", ".join(map(str, trial.act_layers)),
                    f"{trial.strength:g}",
                    _percent(trial.leak_rate),
                    f"{trial.perplexity:.2f}",
                    _percent(trial.looping),
                )
                for trial in fit.trials
            ],
            f"On {len(fit.trial_scores)} validation prompts on which the bare model leaks; the "
            f"guard fires on each. Bare perplexity {calibration['bare_perplexity']:.2f}.",
            frozenset(i for i, trial in enumerate(fit.trials) if trial.chosen),
        ),
        Grid("Calibration", ("figure", "value"), rows(calibration)),
        Grid("Settings", ("setting", "value"), rows(meta.settings)),
    ]
    subtitle = (
        f"Steering guard for {meta.model.name} ({meta.model.architecture}), fitted "
        f"{meta.created.isoformat()}; tensors {meta.tensors_sha256[:12]}"
    )
    return render(f"Fit of {meta.concept}", subtitle, tiles, parts)


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
