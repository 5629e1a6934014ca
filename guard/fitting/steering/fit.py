"""Fitting a steering guard: MLLMEraser's direction and gate, searched on a validation split.

Needs torch and a loaded model. The test split is not used.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from functools import partial
from typing import Any, TypeVar

from pydantic import ValidationError

from guard.artifact import Artifact, ArtifactMeta
from guard.data.prompts import ForgetPrompt, PairedAnswers, RetainPrompt, in_split, texts
from guard.errors import ArtifactError, DataError
from guard.evaluation.fluency import perplexity
from guard.fitting.steering.directions import POSITIONS, SCHEDULE, Trial, directions, search
from guard.fitting.steering.gate_search import (
    FittedGate,
    Rates,
    fit_gate,
    recheck_threshold,
    share_over,
)
from guard.models.chat import ChatModel
from guard.reporting.progress import Stages
from steering.hidden.rows import RowGuard
from steering.methods.steer import SteerGuard, bank_of

R = TypeVar("R")

ANSWER_TOKENS = 64
ANSWERED_RETAIN = 400
CONTRASTED = 64
SEARCHED = 40


@dataclass(frozen=True)
class SteerFit:
    """The result of a fit: the guard, its thresholds, and the figures they were chosen by."""

    guard: SteerGuard
    gate: FittedGate
    recheck: float | None
    strength: float
    trials: tuple[Trial, ...]
    trial_scores: tuple[float, ...]
    """Scores of the prompts of the trials."""
    calibration: dict[str, Any]


def fit_steer(
    chat: ChatModel,
    forget: Sequence[ForgetPrompt],
    retain: Sequence[RetainPrompt],
    *,
    pairs: Sequence[PairedAnswers] = (),
    rates: Rates,
    recheck: bool = True,
    seed: int = 0,
    progress: Stages,
) -> SteerFit:
    """Fit direction, gate, layers, strength and thresholds.

    Raises DataError if a split is empty or has too few retain prompts for the rates, or if the bare
    model leaks on no forget prompt.
    """
    _check_splits(forget, retain)
    rates.check(retain)
    rng = random.Random(seed)
    known = in_split(forget, "validation")
    held_out = _sample(in_split(retain, "validation"), ANSWERED_RETAIN, rng)
    contrasted = _sample(in_split(forget, "train"), CONTRASTED, rng)

    answer = partial(chat.answer, max_tokens=ANSWER_TOKENS, progress=progress)
    bare = answer(texts(known), what="bare answers, forget")
    leaked = [row for row, reply in zip(known, bare, strict=True) if row.leaks(reply.text)]
    if not leaked:
        raise DataError("the bare model leaks on no validation prompt: there is nothing to forget")
    gate = fit_gate(chat, forget, retain, rates, rng, progress)
    bare_retain = answer(texts(held_out), what="bare answers, retain")
    answer_threshold = (
        recheck_threshold(chat, gate, held_out, bare_retain, rates, progress) if recheck else None
    )
    recall = answer(texts(contrasted), what="recall answers", max_tokens=POSITIONS)
    all_directions = directions(
        chat, contrasted, [reply.tokens for reply in recall], pairs, progress
    )
    trial_rows = _sample(leaked, SEARCHED, rng)
    bare_perplexity = perplexity(chat, [reply.tokens for reply in bare])
    trials, guard = search(
        chat,
        gate,
        all_directions,
        trial_rows,
        bare_perplexity,
        recheck=answer_threshold,
        max_tokens=ANSWER_TOKENS,
        progress=progress,
    )
    chosen = next(trial for trial in trials if trial.chosen)
    guarded_answer = partial(
        answer,
        bank=bank_of([guard], chat.device),
        guards=[RowGuard(guard.name, gate.threshold, chosen.strength, True, answer_threshold)],
    )
    guarded = guarded_answer(texts(leaked), what="guarded answers, forget")
    guarded_retain = guarded_answer(texts(held_out), what="guarded answers, retain")
    same = [a.tokens == b.tokens for a, b in zip(bare_retain, guarded_retain, strict=True)]
    score_of = dict(zip((row.prompt for row in known), gate.forget, strict=True))
    return SteerFit(
        guard=guard,
        gate=gate,
        recheck=answer_threshold,
        strength=chosen.strength,
        trials=trials,
        trial_scores=tuple(score_of[row.prompt] for row in trial_rows),
        calibration={
            "split": "validation",
            "false_positive_rate": rates.far,
            "near_false_positive_rate": rates.near,
            "retain_prompts": len(in_split(retain, "validation")),
            "forget_prompts": len(known),
            "bare_leaks": len(leaked),
            "forget_fired_on_prompt": gate.recall,
            "far_fired_on_prompt": share_over(gate.far, gate.threshold),
            "near_fired_on_prompt": share_over(gate.near, gate.threshold),
            "leak_rate": _share(
                row.leaks(reply.text) for row, reply in zip(leaked, guarded, strict=True)
            ),
            "far_identical": _share(
                s for s, row in zip(same, held_out, strict=True) if not row.near
            ),
            "near_identical": _share(s for s, row in zip(same, held_out, strict=True) if row.near),
            "bare_perplexity": bare_perplexity,
            "guarded_perplexity": perplexity(chat, [reply.tokens for reply in guarded]),
        },
    )


def to_artifact(fit: SteerFit, chat: ChatModel, *, concept: str, description: str = "") -> Artifact:
    """The artifact of a fit. Raises ArtifactError for an invalid name."""
    try:
        meta = ArtifactMeta(
            method="steer",
            concept=concept,
            description=description,
            created=date.today(),
            model=chat.fitted_model,
            seams=("hidden",),
            settings={
                "sense_layers": list(fit.guard.sense_layers),
                "act_layers": list(fit.guard.act_layers),
                "pool": fit.guard.pool,
                "rest": fit.guard.rest,
                "schedule": list(SCHEDULE),
                "threshold": fit.gate.threshold,
                "recheck": fit.recheck,
                "strength": fit.strength,
            },
            calibration=fit.calibration,
        )
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise ArtifactError(f"{where}: {first['msg']}") from error
    # the first step of the schedule is the direction itself
    tensors = {"gates": fit.guard.gates.numpy(), "directions": fit.guard.directions[0].numpy()}
    return Artifact(meta, tensors)


def _check_splits(forget: Sequence[ForgetPrompt], retain: Sequence[RetainPrompt]) -> None:
    for split in ("train", "validation"):
        for name, count in (
            ("forget", len(in_split(forget, split))),
            ("retain", len(in_split(retain, split))),
        ):
            if not count:
                raise DataError(
                    f"the {name} file has no prompts in the {split} split: mark some with "
                    f'"split": "{split}"'
                )


def _sample(rows: list[R], count: int, rng: random.Random) -> list[R]:
    """At most `count` of `rows`, in their order."""
    picked = sorted(rng.sample(range(len(rows)), min(count, len(rows))))
    return [rows[i] for i in picked]


def _share(flags: Iterable[bool]) -> float:
    values = list(flags)
    return sum(values) / max(len(values), 1)
