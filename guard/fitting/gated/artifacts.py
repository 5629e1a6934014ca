"""Artifacts of guards behind a prompt's gate, and their reports."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from typing import Any

from pydantic import ValidationError

from guard.artifact import Artifact, ArtifactMeta, version_of
from guard.errors import ArtifactError
from guard.fitting.gated.search import Fit
from guard.fitting.gated.token_gate import TokenGate
from guard.fitting.judgement import Remedies, judgement, judgement_grid
from guard.fitting.steering.report import GARBLED, LEAKS
from guard.models.chat import ChatModel
from guard.reporting.page import Grid, Tile, render
from guard.reporting.values import rows
from steering.methods import method_named


def gated_artifact(
    method: str,
    chat: ChatModel,
    gate: TokenGate,
    settings: Mapping[str, Any],
    tensors: Mapping[str, Any],
    calibration: Mapping[str, Any],
    *,
    concept: str,
    description: str = "",
) -> Artifact:
    """An artifact of `method` with the gate's tensors and settings. Raises ArtifactError for an
    invalid name."""
    own = {**gate.settings, "strength": 1.0, **settings}
    try:
        meta = ArtifactMeta(
            schema_version=version_of(own, None),
            method=method,
            concept=concept,
            description=description,
            created=date.today(),
            model=chat.fitted_model,
            seams=(method_named(method).seam,),
            settings=own,
            calibration=dict(calibration),
        )
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise ArtifactError(f"{where}: {first['msg']}") from error
    return Artifact(meta, {"gates": gate.gates.numpy(), **tensors})


def to_artifact(fit: Fit, chat: ChatModel, *, concept: str, description: str = "") -> Artifact:
    """The artifact of a fit. Raises ArtifactError for an invalid name."""
    return gated_artifact(
        fit.method,
        chat,
        fit.gate,
        {**fit.guard.settings, "strength": fit.guard.strength},
        {name: tensor.numpy() for name, tensor in fit.guard.tensors.items()},
        fit.calibration,
        concept=concept,
        description=description,
    )


def as_json(fit: Fit, meta: ArtifactMeta, took_s: float) -> dict[str, Any]:
    """All figures of a fit."""
    return {
        "method": meta.method,
        "concept": meta.concept,
        "model": meta.model.model_dump(mode="json"),
        "tensors_sha256": meta.tensors_sha256,
        "settings": meta.settings,
        "calibration": meta.calibration,
        "trials": [
            {
                "label": guard.label,
                "act_layers": list(trial.act_layers),
                "strength": trial.strength,
                "leak_rate": trial.leak_rate,
                "perplexity": trial.perplexity,
                "looping": trial.looping,
                "chosen": trial.chosen,
            }
            for guard, trial in zip(fit.candidates, fit.trials, strict=True)
        ],
        "judgement": judged(fit),
        **fit.held_out.as_json(),
        "took_s": round(took_s, 1),
    }


def judged(fit: Fit) -> str:
    """Whether the guard is usable, and what to do where it is not: one line."""
    figures, faults = fit.calibration, []
    if figures["trial_leak_rate"] > LEAKS:
        faults.append(
            f"{figures['trial_leak_rate']:.0%} of the answers that the bare model leaks still "
            "leak; ask for a higher --rank or --erased, or fit a steering guard"
        )
    if figures["guarded_perplexity"] > GARBLED * figures["bare_perplexity"]:
        faults.append("guarded answers are garbled; set a lower strength in config.toml")
    remedies = Remedies(
        add="add prompts like these to the train split, or take the gate of a steering guard with "
        "--gate",
        instead="fit a steering guard",
        unusable=tuple(faults),
    )
    return judgement(fit.held_out, remedies)


def as_page(fit: Fit, meta: ArtifactMeta) -> str:
    """The page: what was tried, which prompts are missed."""
    ratio = fit.calibration["guarded_perplexity"] / fit.calibration["bare_perplexity"]
    tiles = [
        Tile("Bare leaks that remain in the trial", f"{fit.calibration['trial_leak_rate']:.1%}"),
        Tile("Forget prompts that fire", f"{fit.calibration['forget_fired_on_prompt']:.1%}"),
        Tile("Perplexity, guarded / bare", f"{ratio:.2f}"),
    ]
    parts = [
        judgement_grid(judged(fit)),
        Grid(
            "Guards tried",
            ("guard", "strength", "leak rate", "perplexity", "loops"),
            [
                (
                    guard.label,
                    f"{trial.strength:g}",
                    f"{trial.leak_rate:.1%}",
                    f"{trial.perplexity:.2f}",
                    f"{trial.looping:.1%}",
                )
                for guard, trial in zip(fit.candidates, fit.trials, strict=True)
            ],
            f"On {fit.calibration['trial_prompts']} validation prompts on which the bare model "
            "leaks; the guard fires on each.",
            frozenset(i for i, trial in enumerate(fit.trials) if trial.chosen),
        ),
        *fit.held_out.grids(),
        Grid("Calibration", ("figure", "value"), rows(fit.calibration)),
        Grid("Settings", ("setting", "value"), rows(meta.settings)),
    ]
    subtitle = (
        f"Guard of the method {meta.method} for {meta.model.name} ({meta.model.architecture}), "
        f"fitted {meta.created.isoformat()}; tensors {meta.tensors_sha256[:12]}"
    )
    return render(f"Fit of {meta.concept}", subtitle, tiles, parts)
