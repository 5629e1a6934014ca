"""Fitting the guards of one concept from its name: gates, thresholds, and the profile's directions.

One gate for the concept and one for each thing that belongs to it. What is innocent is the retain
bank; its topics nearest to the concept are near misses, those that speak of it are left out.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from classifiers.calibration import threshold_for
from guard.data.bank.bank import PROMPTS, Topic, topics
from guard.data.prompts import texts
from guard.errors import DataError
from guard.fitting.erasure.belonging import Belonging
from guard.fitting.erasure.naming import mentions
from guard.fitting.erasure.profile import Profile
from guard.fitting.erasure.profiling import read_prompts
from guard.fitting.erasure.wordings import rows
from guard.fitting.steering.directions import REST, SCHEDULE
from guard.fitting.steering.fit import SteerFit
from guard.fitting.steering.gate_search import FittedGate, GateRates, GateStates, raised
from guard.fitting.steering.gates import POOL, RetainStatistics, TokenStates
from guard.fitting.steering.subjects import SubjectGates, best_subject_gates
from guard.fitting.steering.wordings import WRAPPERS
from guard.models.chat import ChatModel
from guard.reporting.progress import Stages
from steering.methods.steer import SteerGuard

NEAR = 8
"""Topics of each split that are near misses."""
RATES = GateRates(far=0.01, near=0.1)
ROOM = 0.5
"""The share of the room between innocent prompts and those about a concept, or a thing that belongs
to it, that its threshold takes: one guard keeps its rate without, many together do not."""


@dataclass(frozen=True)
class Erasure:
    """The fit of one concept: `left_out` are the topics of the bank that speak of it, `near` the
    nearest ones of each split."""

    belonging: Belonging
    fit: SteerFit
    near: tuple[Topic, ...]
    left_out: tuple[Topic, ...]


def fit_erasure(
    chat: ChatModel,
    profile: Profile,
    belonging: Belonging,
    progress: Stages,
    *,
    rates: GateRates = RATES,
    seed: int = 0,
) -> Erasure:
    """Fit the guards of a concept. Raises DataError where too little of the bank is left to keep
    the rates."""
    layers, rng = profile.about.sense_layers, random.Random(seed)
    train, known = (list(rows(belonging, split)) for split in ("train", "validation"))

    def read(stage: str, prompts: Sequence[str]) -> TokenStates:
        return read_prompts(chat, prompts, layers, stage, progress)

    forget = read("reading forget prompts", texts(train))
    own = torch.tensor([row.subject == belonging.name for row in train])
    near, left_out = _placed(profile, belonging, forget.of(own).means(-1).mean(0))
    validation = [topic for topic in topics() if topic.split == "validation"]
    kept = torch.tensor([topic not in left_out for topic in validation]).repeat_interleave(PROMPTS)
    is_near = torch.tensor([topic in near for topic in validation]).repeat_interleave(PROMPTS)
    wrapped = [rng.choice(WRAPPERS).format(row.prompt) for row in known]
    states = GateStates(
        layers=layers,
        forget=forget,
        forget_rows=tuple(train),
        retain=profile.sample,
        near=torch.zeros(profile.sample.count, dtype=torch.bool),
        known=read("validation, forget", texts(known)),
        altered=read("validation, wrapped", wrapped),
        held_out=profile.held_out.of(kept),
        held_out_near=tuple(is_near[kept].tolist()),
        statistics=_statistics(profile, near, left_out, belonging.innocent, read),
    )
    _require_enough(states.held_out_near, rates)
    whole = FittedGate(layers, torch.zeros(len(layers), chat.width), 0.0, (), (), ())
    whole, subjects = best_subject_gates(states, [whole], known, rates, first_apart=True, room=ROOM)
    if belonging.innocent:
        innocent = read("validation, innocent prompts", belonging.innocent)
        subjects = _silent_on(innocent, subjects)
    subjects = replace(subjects, recheck_level=_recheck_level(profile, subjects, rates))
    schedule = torch.tensor(SCHEDULE)[:, None, None]
    gate = subjects.as_one(whole)
    fit = SteerFit(
        guard=SteerGuard(
            name=belonging.name,
            sense_layers=layers,
            gates=subjects.gates[0],
            act_layers=profile.about.act_layers,
            directions=schedule * profile.directions[None],
            pool=POOL,
            rest=REST,
        ),
        gate=gate,
        recheck=subjects.recheck_level,
        strength=profile.about.strength,
        trials=(),
        trial_scores=(),
        calibration={
            "split": "validation",
            "false_positive_rate": rates.far,
            "near_false_positive_rate": rates.near,
            "retain_prompts": states.held_out.count,
            "forget_prompts": len(known),
            "forget_fired_on_prompt": gate.recall,
            "altered_fired_on_prompt": gate.reach[1],
            "subjects": len(subjects.names),
        },
        subjects=subjects,
    )
    return Erasure(belonging, fit, tuple(near), tuple(left_out))


def _placed(
    profile: Profile, belonging: Belonging, concept: Tensor
) -> tuple[list[Topic], list[Topic]]:
    """The topics of each split nearest to the concept, whose mean state is `concept [width]`, and
    those that speak of it."""
    every, names = topics(), " , ".join(belonging.names)
    spoken = mentions((*belonging.names, *belonging.terms))
    left_out = [
        topic
        for topic in every
        if spoken.search(topic.name) or mentions([topic.name]).search(names)
    ]
    middle = profile.centres.mean(0)
    closeness = torch.cosine_similarity(profile.centres - middle, (concept - middle)[None])
    ranked = [every[i] for i in closeness.argsort(descending=True) if every[i] not in left_out]
    near = [
        topic
        for split in ("train", "validation", "test")
        for topic in [each for each in ranked if each.split == split][:NEAR]
    ]
    return near, left_out


def _statistics(
    profile: Profile,
    near: Sequence[Topic],
    left_out: Sequence[Topic],
    innocent: Sequence[str],
    read: Callable[[str, Sequence[str]], TokenStates],
) -> RetainStatistics:
    """The profile's statistics, with the near topics and innocent prompts as near misses and
    without what speaks of the concept."""
    statistics = profile.statistics
    wrapped = [wrapper.replace("{}", text) for text in innocent for wrapper in ("{}", *WRAPPERS)]
    misses = read("reading near misses", [*_of_train(near), *wrapped])
    gram = statistics.gram + statistics.gram_of(misses)
    if spoken_of := _of_train(left_out):
        gram = gram - statistics.plain_gram_of(read("reading what speaks of it", spoken_of))
    return replace(statistics, gram=gram)


def _of_train(chosen: Sequence[Topic]) -> list[str]:
    return [prompt for topic in chosen if topic.split == "train" for prompt in topic.prompts]


def _silent_on(innocent: TokenStates, subjects: SubjectGates) -> SubjectGates:
    """The same gates with a level that is over the scores of `innocent`."""
    known = (*subjects.largest_far, *subjects.largest_near)
    level = raised(max(_largest(innocent, subjects)), known)
    return replace(subjects, level=max(subjects.level, level))


def _recheck_level(profile: Profile, subjects: SubjectGates, rates: GateRates) -> float:
    scores = _largest(profile.answered, subjects, answered=True)
    return max(subjects.level, raised(threshold_for(scores, rates.far / 2), scores))


def _largest(states: TokenStates, subjects: SubjectGates, *, answered: bool = False) -> list[float]:
    """The largest standardised score of each sequence."""
    scores = states.scores(range(subjects.gates.shape[1]), subjects.gates, POOL)
    return subjects.standardised(scores, answered=answered).amax(0).tolist()


def require_rates(rates: GateRates) -> None:
    """Raise DataError for rates that the retain bank is too small for, whatever the concept."""
    validation = PROMPTS * sum(topic.split == "validation" for topic in topics())
    near = PROMPTS * NEAR
    rates.check_counts(far=validation - near, near=near)


def _require_enough(near: Sequence[bool], rates: GateRates) -> None:
    for kind, have, needed in (
        ("near", sum(near), rates.needed(near=True)),
        ("far", len(near) - sum(near), rates.needed(near=False)),
    ):
        if have < needed:
            raise DataError(
                f"{have} {kind} prompts of the retain bank are left, and the rate needs {needed}: "
                "the concept is too general to be told from everything else; name a part of it"
            )
