"""Fitting a steering guard: MLLMEraser's direction and gate, searched on a validation split.

Needs torch and a loaded model. The test split is not used.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from guard.data.prompts import AskedRow, ForgetPrompt, PairedAnswers, RetainPrompt, in_split
from guard.errors import DataError
from guard.evaluation.fluency import perplexity
from guard.fitting.judgement import HeldOut, Scored
from guard.fitting.steering.asking import asked
from guard.fitting.steering.directions import POSITIONS, Trial, directions, search
from guard.fitting.steering.effort import WHOLE, Effort, answered, sample, thinned
from guard.fitting.steering.gate_search import (
    NO_IMAGES,
    FittedGate,
    GateRates,
    answered_states,
    fit_gate,
    read_states,
    recheck_threshold,
    share_over,
)
from guard.fitting.steering.perturbation import Perturbation
from guard.fitting.steering.subjects import (
    SubjectGates,
    best_subject_gates,
    guarded_answers,
    recheck_level,
    require_subjects,
    subject_guards,
)
from guard.fitting.steering.visual import Parts, VisualPart, combined, visual_part
from guard.models.chat import ChatModel
from guard.reporting.progress import Stages
from steering.hidden.bank import Tokens
from steering.methods.steer import SteerGuard


@dataclass(frozen=True)
class SteerFit:
    """The result of a fit: the guard, its thresholds, and the figures they were chosen by.

    `tried` are all gates of the whole set that were tried, `visual` the visual part of the
    direction, and `subjects` the gates of a fit with one guard for each subject: `gate` is then all
    of them seen as one (`SubjectGates.as_one`).
    """

    guard: SteerGuard
    gate: FittedGate
    recheck: float | None
    strength: float
    trials: tuple[Trial, ...]
    trial_scores: tuple[float, ...]
    """Scores of the prompts of the trials."""
    calibration: dict[str, Any]
    tried: tuple[FittedGate, ...] = ()
    parts: Parts | None = None
    visual: VisualPart | None = None
    subjects: SubjectGates | None = None
    held_out: HeldOut = HeldOut(0.0, ())
    """The prompts of the validation split."""
    draft: bool = False
    """Whether it was made in a hurry."""


def fit_steer(
    chat: ChatModel,
    forget: Sequence[ForgetPrompt],
    retain: Sequence[RetainPrompt],
    *,
    pairs: Sequence[PairedAnswers] = (),
    rates: GateRates,
    recheck: bool = True,
    tokens: Tokens | None = None,
    parts: Parts | None = None,
    perturbation: Perturbation | None = None,
    each_subject: bool = False,
    effort: Effort = WHOLE,
    seed: int = 0,
    progress: Stages,
) -> SteerFit:
    """Fit direction, gate, layers, strength and thresholds.

    `tokens` are those that the gate scores and `parts` those of the direction, both chosen by the
    prompts where they are None: without images all tokens and the textual part.

    Raises DataError as `require_rows` does, if there are too few retain prompts for the rates, if
    the bare model leaks on no forget prompt, and for images where the model takes none.
    """
    require_rows(
        forget, retain, tokens=tokens, each_subject=each_subject, scores_texts=chat.scores_texts
    )
    require_retain(retain, rates)
    every: tuple[AskedRow, ...] = (*forget, *retain, *pairs)
    seen = [row for row in every if row.images]
    sees = bool(seen)
    if sees:
        asked(chat, seen[:1])  # so that a model that takes none is refused before any work
    rng = random.Random(seed)
    if effort.draft:
        forget, retain = thinned(forget, retain, rates, rng)
    known = in_split(forget, "validation")
    held_out = answered(in_split(retain, "validation"), rates, effort, rng)
    contrasted = sample(in_split(forget, "train"), effort.contrasted, rng)

    answer = partial(chat.answer, max_tokens=effort.answer_tokens, progress=progress)
    bare = answer(asked(chat, known), what="bare answers, forget")
    leaked = [row for row, reply in zip(known, bare, strict=True) if row.leaks(reply.text)]
    if not leaked:
        raise DataError("the bare model leaks on no validation prompt: there is nothing to forget")
    states = read_states(chat, forget, retain, rng, progress)
    gate, tried = fit_gate(chat, states, rates, tokens)
    subjects: SubjectGates | None = None
    if each_subject:
        # the tokens stay: with each candidate all gates of the subjects are fitted anew
        candidates = [each for each in tried if each.tokens == gate.tokens]
        gate, subjects = best_subject_gates(states, candidates, known, rates)
    del states  # the largest thing of the fit
    bare_retain = answer(asked(chat, held_out), what="bare answers, retain")
    answer_threshold: float | None = None
    # generated tokens are no image's
    if recheck and not effort.draft and gate.tokens != "image":
        with_answers = answered_states(chat, gate.layers, held_out, bare_retain, progress)
        answer_threshold = recheck_threshold(gate, with_answers, held_out, rates)
        if subjects is not None:
            level = recheck_level(subjects, gate, with_answers, held_out, rates)
            subjects = replace(subjects, recheck_level=level)
    recall = answer(asked(chat, contrasted), what="recall answers", max_tokens=POSITIONS)
    recalled = [reply.tokens for reply in recall]
    all_directions = directions(chat, contrasted, recalled, pairs, progress)
    visual: VisualPart | None = None
    if sees:
        parts = parts or ("both" if any(row.images for row in contrasted) else "text")
    if parts not in (None, "text"):
        how = perturbation or Perturbation()
        visual = visual_part(chat, contrasted, recalled, how, seed=seed, progress=progress)
        all_directions = combined(all_directions, visual, parts)
    trial_rows = sample(leaked, effort.searched, rng)
    bare_perplexity = perplexity(chat, [reply.tokens for reply in bare])
    trials, guard = search(
        chat,
        gate,
        all_directions,
        trial_rows,
        bare_perplexity,
        recheck=answer_threshold,
        max_tokens=effort.answer_tokens,
        stop_early=sees or effort.draft,
        progress=progress,
    )
    chosen = next(trial for trial in trials if trial.chosen)
    if subjects is None:
        decided, guards = gate, [(guard, gate.threshold, answer_threshold)]
    else:
        decided, guards = subjects.as_one(gate), list(subject_guards(subjects, guard))
    guarded_answer = partial(
        guarded_answers(chat, guards, chosen.strength),
        max_tokens=effort.answer_tokens,
        progress=progress,
    )
    guarded = guarded_answer(asked(chat, leaked), what="guarded answers, forget")
    guarded_retain = guarded_answer(asked(chat, held_out), what="guarded answers, retain")
    same = [a.tokens == b.tokens for a, b in zip(bare_retain, guarded_retain, strict=True)]
    leaks = [row.leaks(reply.text) for row, reply in zip(leaked, guarded, strict=True)]
    score_of = {id(row): score for row, score in zip(known, decided.forget, strict=True)}
    calibration: dict[str, Any] = {
        "split": "validation",
        "false_positive_rate": rates.far,
        "near_false_positive_rate": rates.near,
        "retain_prompts": len(in_split(retain, "validation")),
        "forget_prompts": len(known),
        "bare_leaks": len(leaked),
        "forget_fired_on_prompt": decided.recall,
        "altered_fired_on_prompt": decided.reach[1],
        "far_fired_on_prompt": share_over(decided.far, decided.threshold),
        "near_fired_on_prompt": share_over(decided.near, decided.threshold),
        "leak_rate": _share(leaks),
        "far_identical": _share(s for s, row in zip(same, held_out, strict=True) if not row.near),
        "near_identical": _share(s for s, row in zip(same, held_out, strict=True) if row.near),
        "bare_perplexity": bare_perplexity,
        "guarded_perplexity": perplexity(chat, [reply.tokens for reply in guarded]),
    }
    if sees:
        fired = [score > decided.threshold for score in decided.forget]
        calibration |= {
            "forget_fired_by_kind": _by_kind(known, fired),
            "leak_rate_by_kind": _by_kind(leaked, leaks),
        }
    if subjects is not None:
        calibration |= {
            "subjects": len(subjects.names),
            "forget_fired_by_own": share_over(subjects.own, subjects.level),
            "forget_fired_by_one_gate": gate.recall,
        }
    return SteerFit(
        guard=guard,
        gate=decided,
        recheck=answer_threshold if subjects is None else subjects.recheck_level,
        strength=chosen.strength,
        trials=trials,
        trial_scores=tuple(score_of[id(row)] for row in trial_rows),
        calibration=calibration,
        tried=tried,
        parts=parts,
        visual=visual,
        subjects=subjects,
        held_out=_held_out(decided, known, in_split(retain, "validation")),
        draft=effort.draft,
    )


def _held_out(
    gate: FittedGate, known: Sequence[ForgetPrompt], retain: Sequence[RetainPrompt]
) -> HeldOut:
    """The prompts of the validation split, with the scores of the gate."""
    far, near = ([row for row in retain if row.near == is_near] for is_near in (False, True))
    parts = (("forget", known, gate.forget), ("far", far, gate.far), ("near", near, gate.near))
    return HeldOut(
        gate.threshold,
        tuple(
            Scored(row.prompt, kind, score)
            for kind, rows, scores in parts
            for row, score in zip(rows, scores, strict=True)
        ),
    )


def require_rows(
    forget: Sequence[ForgetPrompt],
    retain: Sequence[RetainPrompt],
    *,
    tokens: Tokens | None,
    each_subject: bool,
    scores_texts: bool,
) -> None:
    """Raise DataError for rows that cannot be fitted on, whatever the model: a split of the forget
    prompts is empty, subjects are missing, distractors meet an engine without `scores_texts`, or
    there are no images for `tokens` of images."""
    _require_splits("forget", forget)
    if each_subject:
        require_subjects(forget)
    if any(row.distractors for row in forget) and not scores_texts:
        raise DataError(
            "forget prompts have distractors, whose likelihoods this engine does not give: ask for "
            "--engine transformers, or leave them out"
        )
    if tokens == "image":
        for rows in (in_split(forget, "train"), in_split(retain, "train")):
            if not any(row.images for row in rows):
                raise DataError(NO_IMAGES)


def require_retain(retain: Sequence[RetainPrompt], rates: GateRates) -> str:
    """As `GateRates.check`, and DataError for a split without prompts."""
    _require_splits("retain", retain)
    return rates.check(retain)


def _require_splits(name: str, rows: Sequence[ForgetPrompt] | Sequence[RetainPrompt]) -> None:
    for split in ("train", "validation"):
        if not any(row.split == split for row in rows):
            raise DataError(
                f"the {name} file has no prompts in the {split} split: mark some with "
                f'"split": "{split}"'
            )


def _share(flags: Iterable[bool]) -> float:
    values = list(flags)
    return sum(values) / max(len(values), 1)


def _by_kind(rows: Sequence[ForgetPrompt], flags: Sequence[bool]) -> dict[str, float]:
    """The share of flags by how rows ask: by an image, by text, or by both, an image and a text
    that names the subject."""
    kinds = [
        "text"
        if not row.images
        else "both"
        if row.subject and row.subject.lower() in row.prompt.lower()
        else "image"
        for row in rows
    ]
    return {
        kind: _share(f for f, k in zip(flags, kinds, strict=True) if k == kind)
        for kind in sorted(set(kinds))
    }
