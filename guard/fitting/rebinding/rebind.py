"""Binding a fitted steering guard to another copy of its model.

The gate and the directions stay. The thresholds are calibrated anew on the retain prompts of the
validation split, as the fit does; whether the guard holds is judged on the test split alone.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any, TypeGuard, TypeVar

from pydantic import JsonValue

from classifiers.calibration import prompts_needed
from guard.artifact import Artifact, Parent, version_of
from guard.data.prompts import AskedRow, ForgetPrompt, RetainPrompt, Split, in_split
from guard.errors import ArtifactError, DataError
from guard.evaluation.shares import Share
from guard.fitting.rebinding import drift
from guard.fitting.rebinding.bounds import HeldOut, Limits
from guard.fitting.rebinding.gate import LoadedGate
from guard.fitting.steering.gate_search import GateRates
from guard.models.chat import ChatModel
from guard.reporting.progress import Stages

CALIBRATION: Split = "validation"
JUDGED: Split = "test"

R = TypeVar("R")


@dataclass(frozen=True)
class Rebinding:
    """The outcome: the artifact for the new model, its figures, and what speaks against it."""

    artifact: Artifact
    figures: dict[str, Any]
    faults: list[str]


@dataclass(frozen=True)
class _Rows:
    """The prompts that are used: retain by kind, far and near."""

    forget: Sequence[ForgetPrompt]
    retain: Mapping[str, Sequence[RetainPrompt]]

    def by_kind(self) -> dict[str, Sequence[AskedRow]]:
        return {"forget": self.forget, **self.retain}


def rebind(
    chat: ChatModel,
    artifact: Artifact,
    forget: Sequence[ForgetPrompt],
    retain: Sequence[RetainPrompt],
    *,
    max_leaks: float,
    max_drop: float,
    prompts: int,
    original: ChatModel | None = None,
    seed: int = 0,
    progress: Stages,
) -> Rebinding:
    """Measure the guard of `artifact` on `chat`, at most `prompts` of each kind in each split, and
    calibrate its thresholds there.

    `original` is the model of the fit, for the drift of each prompt's score. Raises ArtifactError
    for an artifact that cannot be bound to this model, and DataError for too few prompts.
    """
    limits, rates = _limits(artifact, max_leaks, max_drop)
    require_prompts(artifact, forget, retain)
    about = chat.fitted_model
    if about.fingerprint == artifact.meta.model.fingerprint:
        raise ArtifactError(f"fits {chat.name!r} already: there is nothing to bind")
    if original and original.fitted_model.fingerprint != artifact.meta.model.fingerprint:
        raise ArtifactError(f"was not fitted on {original.name!r}: leave out --original")
    rng = random.Random(seed)
    gate = LoadedGate(artifact, chat, progress)
    known = _rows(forget, retain, CALIBRATION, prompts, rng, rates)
    held_out = _rows(forget, retain, JUDGED, prompts, rng)
    # first of all, since it may end here
    leaked = _leaked(gate, held_out.forget, limits)

    scores = _scores(gate, known, "validation")
    threshold = _threshold(rates, scores["far"], scores["near"])
    recheck = None if gate.recheck is None else max(threshold, _recheck(gate, known, rates))
    judged_scores = _scores(gate, held_out, "test")
    counts = _judge(gate, held_out, leaked, judged_scores, threshold, recheck)
    figures: dict[str, Any] = {
        "thresholds": {
            "threshold": {"before": gate.threshold, "after": threshold},
            "recheck": {"before": gate.recheck, "after": recheck},
        },
        "held_out": counts.as_json(),
        "drift": {
            "quantiles": drift.quantiles(judged_scores),
            "fired_at_the_old_threshold": drift.fired(judged_scores, gate.threshold),
            "fired_at_the_new_threshold": drift.fired(judged_scores, threshold),
        },
    }
    if original:
        before = _scores(LoadedGate(artifact, original, progress), held_out, "original, test")
        figures["drift"] |= {
            "quantiles_before": drift.quantiles(before),
            "fired_before": drift.fired(before, gate.threshold),
            "by_prompt": drift.paired(before, judged_scores, gate.threshold),
        }
    moved = {"threshold": threshold, "recheck": recheck}
    shares = drift.fired(scores, threshold)
    calibration = {
        "split": CALIBRATION,
        "false_positive_rate": rates.far,
        "near_false_positive_rate": rates.near,
        "retain_prompts": sum(map(len, known.retain.values())),
        "forget_prompts": len(known.forget),
        "forget_fired_on_prompt": shares["forget"],
        "far_fired_on_prompt": shares["far"],
        "near_fired_on_prompt": shares["near"],
        "held_out": figures["held_out"],
    }
    return Rebinding(_bound(artifact, chat, moved, calibration), figures, counts.faults(limits))


def require_prompts(
    artifact: Artifact, forget: Sequence[ForgetPrompt], retain: Sequence[RetainPrompt]
) -> None:
    """Raise what `rebind` raises before any model is needed."""
    limits, rates = _limits(artifact, 0.5, 0.5)
    rates.check(retain)
    near, far = ([row for row in retain if row.near is kind] for kind in (True, False))
    for split in (CALIBRATION, JUDGED):
        for kind, rows in (("forget", forget), ("near retain", near), ("far retain", far)):
            if not in_split(rows, split):
                raise DataError(
                    f"there are no {kind} prompts in the {split} split: thresholds are chosen on "
                    f'{CALIBRATION} and judged on {JUDGED}; mark some with "split": "{split}"'
                )


def _limits(artifact: Artifact, leaks: float, drop: float) -> tuple[Limits, GateRates]:
    meta = artifact.meta
    if meta.parent is not None:
        raise ArtifactError(
            f"was itself bound to {meta.model.name!r}: bind the artifact that it was made from "
            f"({meta.parent.digest[:12]}), so that losses do not add up unseen"
        )
    if "subjects" in meta.calibration:
        raise ArtifactError(
            f"is one of {meta.calibration['subjects']} guards whose rates are those of all together"
            ": fit them on that model"
        )
    names = ("false_positive_rate", "near_false_positive_rate", "forget_fired_on_prompt")
    values = [meta.calibration.get(name) for name in names]
    numbers = [float(value) for value in values if _is_share(value)]
    if len(numbers) < len(names) or min(numbers[:2]) == 0:
        raise ArtifactError(
            f"holds no {', '.join(names)} of its fit, which must be kept: fit it on that model"
        )
    far, near, recall = numbers
    return Limits(leaks, drop, recall, far, near), GateRates(far, near)


def _is_share(value: JsonValue) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


def _rows(
    forget: Sequence[ForgetPrompt],
    retain: Sequence[RetainPrompt],
    split: Split,
    count: int,
    rng: random.Random,
    rates: GateRates | None = None,
) -> _Rows:
    """At most `count` prompts of each kind, or as many as `rates` need."""
    rows = in_split(retain, split)
    kinds = {"far": rates and rates.far, "near": rates and rates.near}
    return _Rows(
        _sample(in_split(forget, split), count, rng),
        {
            kind: _sample(
                [row for row in rows if row.near == (kind == "near")],
                max(count, prompts_needed(rate / 2) if rate else 0),
                rng,
            )
            for kind, rate in kinds.items()
        },
    )


def _sample(rows: Sequence[R], count: int, rng: random.Random) -> list[R]:
    picked = sorted(rng.sample(range(len(rows)), min(count, len(rows))))
    return [rows[i] for i in picked]


def _scores(gate: LoadedGate, rows: _Rows, stage: str) -> dict[str, list[float]]:
    found = {kind: gate.scores(part, f"{stage}, {kind}") for kind, part in rows.by_kind().items()}
    for scores in found.values():
        gate.require_finite(scores)
    return found


def _threshold(rates: GateRates, far: Sequence[float], near: Sequence[float]) -> float:
    return rates.threshold([*far, *near], [False] * len(far) + [True] * len(near))


def _recheck(gate: LoadedGate, known: _Rows, rates: GateRates) -> float:
    """The threshold of prompts with their answers."""
    joint = {}
    for kind, rows in known.retain.items():
        answers = gate.bare(rows, f"bare answers, {kind} of validation")
        joint[kind] = gate.scores(rows, f"reading answers, {kind}", answers)
    return _threshold(rates, joint["far"], joint["near"])


def _leaked(gate: LoadedGate, rows: Sequence[ForgetPrompt], limits: Limits) -> list[ForgetPrompt]:
    """The prompts that the bare model answers with their fact. Raises DataError where they are too
    few for the bound on leaks."""
    bare = gate.bare(rows, "bare answers, forget")
    leaked = [row for row, a in zip(rows, bare, strict=True) if row.leaks(a.text)]
    if len(leaked) < limits.prompts_needed:
        raise DataError(
            f"a bound of {limits.leaks:.1%} on leaks needs {limits.prompts_needed} forget prompts "
            f"of the test split that the bare model answers with their fact, and it does on "
            f"{len(leaked)} of {len(rows)}: add some, or raise --prompts or --max-leaks"
        )
    return leaked


def _judge(
    gate: LoadedGate,
    rows: _Rows,
    leaked: Sequence[ForgetPrompt],
    scores: Mapping[str, Sequence[float]],
    threshold: float,
    recheck: float | None,
) -> HeldOut:
    guarded = gate.guarded(leaked, "guarded answers, forget", threshold, recheck)
    changed: dict[str, Share] = {}
    broken: int | None = 0
    for kind, part in rows.retain.items():
        plain = gate.bare(part, f"bare answers, {kind}")
        beside = gate.guarded(part, f"guarded answers, {kind}", threshold, recheck)
        differs = [a.tokens != b.tokens for a, b in zip(plain, beside, strict=True)]
        if broken is not None and all(answer.readings for answer in beside):
            broken += sum(d and not a.fired for d, a in zip(differs, beside, strict=True))
        else:
            broken = None  # as in vLLM, where a fit gets no readings
        changed[kind] = Share.of(differs)
    return HeldOut(
        leaks=Share.of([row.leaks(a.text) for row, a in zip(leaked, guarded, strict=True)]),
        misses=Share.of([score <= threshold for score in scores["forget"]]),
        far=changed["far"],
        near=changed["near"],
        broken=broken,
    )


def _bound(
    artifact: Artifact,
    chat: ChatModel,
    moved: Mapping[str, float | None],
    calibration: dict[str, JsonValue],
) -> Artifact:
    meta = artifact.meta
    before = {name: meta.settings[name] for name in moved if name in meta.settings}
    parent = Parent(digest=artifact.digest, model=meta.model, settings=before)
    return Artifact(
        meta.model_copy(
            update={
                "schema_version": version_of(meta.settings, parent),
                "created": date.today(),
                "model": chat.fitted_model,
                "settings": {**meta.settings, **moved},
                "calibration": calibration,
                "parent": parent,
            }
        ),
        artifact.tensors,
    )
