"""One guard for each subject of a forget file, with a false-positive rate for all together.

The statistics of the retain prompts are computed once and shared; the prompts of all other subjects
are near misses of each. A request carries all of these guards, so what counts is whether any of
them fires: scores are standardised guard by guard, and the threshold is the conformal one of the
largest. The unit of a guard is the step from a retain prompt to a prompt about its subject, or the
deviation of the scores of retain prompts, all of the train split. In deviations, a subject who
shares a name with others, and whose scores on them vary, can have a threshold that its own prompts
do not reach; in steps, one whose scores vary little has a higher threshold than it needs.

Directions and strength are those of the guard of the whole set, and so are the tokens; layers and
units are those with which the guards of the subjects catch the most.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from guard.data.prompts import ForgetPrompt, RetainPrompt
from guard.errors import DataError
from guard.fitting.steering.gate_search import FittedGate, GateRates, GateStates
from guard.fitting.steering.gates import RetainStatistics, TokenStates
from guard.models.chat import Answers, ChatModel
from steering.hidden.rows import RowGuard
from steering.methods.steer import SteerGuard, bank_of


@dataclass(frozen=True)
class SubjectGates:
    """Gates of `names`, `[subjects, layers, width]`, with `thresholds [subjects]`.

    `mean [subjects]` is that of each gate's scores on retain prompts, `unit [subjects]` what their
    distance from it is divided by, `answer_unit` the same for answers; `level` and `recheck_level`
    (None for none) are the thresholds of scores standardised like that. Of the validation split
    there are the largest score of each prompt (forget prompts altered as well) and, for forget
    prompts, that of its subject's gate, `own`, all standardised.
    """

    names: tuple[str, ...]
    gates: Tensor
    mean: Tensor
    unit: Tensor
    answer_unit: Tensor
    level: float
    recheck_level: float | None
    largest_forget: tuple[float, ...]
    own: tuple[float, ...]
    largest_far: tuple[float, ...]
    largest_near: tuple[float, ...]
    largest_altered: tuple[float, ...]

    def as_one(self, gate: FittedGate) -> FittedGate:
        """All gates seen as one that fires where any of them does: its scores are the largest
        standardised ones. `gate` is that of the whole set."""
        return replace(
            gate,
            threshold=self.level,
            forget=self.largest_forget,
            far=self.largest_far,
            near=self.largest_near,
            altered=self.largest_altered,
        )

    def standardised(self, scores: Tensor, *, answered: bool = False) -> Tensor:
        """`scores [subjects, sequences]` of prompts, or of prompts with answers, in the units of
        each gate."""
        return _standardised(scores, self.mean, self.answer_unit if answered else self.unit)

    @property
    def thresholds(self) -> Tensor:
        """The threshold of each gate on prompts, `[subjects]`."""
        return self.mean + self.level * self.unit

    @property
    def rechecks(self) -> Tensor | None:
        """The threshold of each gate on generated tokens, `[subjects]`; none lies under that of
        prompts, whose tokens count there too."""
        level = self.recheck_level
        if level is None:
            return None
        return torch.maximum(self.mean + level * self.answer_unit, self.thresholds)


def require_subjects(forget: Sequence[ForgetPrompt]) -> None:
    """Raise DataError for rows without a subject, and for subjects without rows to fit on."""
    unnamed = sum(not row.subject for row in forget)
    if unnamed:
        raise DataError(
            f"{unnamed} of {len(forget)} forget prompts have no subject: name who or what each is "
            'about ("subject"), or leave out --each subject'
        )
    train = {row.subject for row in forget if row.split == "train"}
    if lost := sorted({row.subject for row in forget} - train):
        raise DataError(
            f"no forget prompt about {lost[0]!r} is in the train split: mark some with "
            '"split": "train"'
        )


def best_subject_gates(
    states: GateStates,
    tried: Sequence[FittedGate],
    known: Sequence[ForgetPrompt],
    rates: GateRates,
    *,
    first_apart: bool = False,
    room: float = 0.0,
) -> tuple[FittedGate, SubjectGates]:
    """The gates of all subjects that together catch the most (`FittedGate.reach`), at the layers of
    one of `tried`, and that one: layers at which one gate knows the whole set need not be those at
    which many gates tell each of it from the rest. `known` are the forget rows of the validation
    split. `first_apart` keeps one half of the rates for the first subject, whom the gates of many
    others would otherwise cost its threshold. `room` is the share that each threshold takes of the
    room between innocent prompts and its own subject's."""
    fitted = [
        (gate, gates)
        for gate in tried
        for gates in fit_subject_gates(
            states, gate, known, rates, first_apart=first_apart, room=room
        )
    ]
    return max(fitted, key=lambda pair: pair[1].as_one(pair[0]).reach)


def fit_subject_gates(
    states: GateStates,
    gate: FittedGate,
    known: Sequence[ForgetPrompt],
    rates: GateRates,
    *,
    first_apart: bool = False,
    room: float = 0.0,
) -> Iterator[SubjectGates]:
    """A gate for each subject, at the layers and tokens of `gate`, with thresholds in each unit;
    arguments as of `best_subject_gates`."""
    chosen, indices = states.only(gate.tokens), states.indices(gate.layers)
    names = tuple(dict.fromkeys(row.subject for row in states.forget_rows))
    statistics = states.statistics or RetainStatistics.of(chosen.retain, chosen.near, indices)
    everyone = statistics.gram_of(chosen.forget)
    gates, medians = [], []
    for name in names:
        mask = torch.tensor([row.subject == name for row in states.forget_rows])
        own = chosen.forget.of(mask)
        gates.append(statistics.gate(own, everyone - statistics.gram_of(own)))
        medians.append(own.scores(indices, gates[-1][None], gate.pool).median())
    stacked = torch.stack(gates)
    trained, *scores = (
        part.scores(indices, stacked, gate.pool)
        for part in (chosen.retain, chosen.known, chosen.altered, chosen.held_out)
    )
    mean, near = trained.mean(1), states.held_out_near
    rows = [names.index(row.subject) for row in known]
    for unit in (torch.stack(medians) - mean, trained.std(1)):
        unit = unit.clamp(min=1e-6)
        if first_apart:
            unit = _first_apart(_standardised(scores[-1], mean, unit), unit, near, rates)
        level = rates.threshold(_standardised(scores[-1], mean, unit).amax(0).tolist(), near)
        answer_unit = unit
        if room:
            # of prompts alone: what the answer says is all that an indirect question shows
            unit = unit * _apart(_standardised(scores[0], mean, unit), rows, level, room)
        forget, altered, held_out = (_standardised(each, mean, unit) for each in scores)
        largest = held_out.amax(0).tolist()
        yield SubjectGates(
            names=names,
            gates=stacked,
            mean=mean,
            unit=unit,
            answer_unit=answer_unit,
            level=level,
            recheck_level=None,
            largest_forget=tuple(forget.amax(0).tolist()),
            own=tuple(forget[rows, range(len(rows))].tolist()),
            largest_far=tuple(s for s, is_near in zip(largest, near, strict=True) if not is_near),
            largest_near=tuple(s for s, is_near in zip(largest, near, strict=True) if is_near),
            largest_altered=tuple(altered.amax(0).tolist()),
        )


def _first_apart(held_out: Tensor, unit: Tensor, near: Sequence[bool], rates: GateRates) -> Tensor:
    """`unit` with that of the first subject changed, so that it has one half of the rates for
    itself and all others together the other half, at one level. `held_out [subjects, prompts]` are
    standardised scores. Unchanged where there are too few prompts for halves of the rates."""
    half = GateRates(rates.far / 2, rates.near / 2)
    kinds = ((True, sum(near)), (False, len(near) - sum(near)))
    if len(held_out) < 2 or any(half.needed(near=kind) > count for kind, count in kinds):
        return unit
    first = half.threshold(held_out[0].tolist(), near)
    others = half.threshold(held_out[1:].amax(0).tolist(), near)
    if min(first, others) <= 0:
        return unit
    return torch.cat([unit[:1] * first / others, unit[1:]])


def _apart(known: Tensor, owner: Sequence[int], level: float, room: float) -> Tensor:
    """The factors `[subjects]` by which units grow, so that at `level` each threshold has gone the
    share `room` of the way to the lowest score of its subject's own prompts; 1 where that lies
    under the level. `known [subjects, prompts]` are standardised scores of the prompts of `owner`.
    """
    if level <= 0:
        return torch.ones(len(known))
    own = torch.arange(len(known))[:, None] == torch.tensor(owner)
    lowest = known.masked_fill(~own, torch.inf).amin(1)
    # a subject without prompts in the validation split has no room that is known
    lowest = lowest.where(lowest.isfinite(), torch.full_like(lowest, level))
    return 1 + room * (lowest / level - 1).clamp(min=0)


def _standardised(scores: Tensor, mean: Tensor, unit: Tensor) -> Tensor:
    """`scores [subjects, sequences]` in the units of each gate."""
    return (scores - mean[:, None]) / unit[:, None]


def subject_guards(
    gates: SubjectGates, guard: SteerGuard
) -> Iterator[tuple[SteerGuard, float, float | None]]:
    """For each subject its guard, the threshold of prompts and that of generated tokens; `guard`
    is that of the whole set, whose directions all of them have."""
    rechecks = gates.rechecks
    for i, name in enumerate(gates.names):
        again = None if rechecks is None else float(rechecks[i])
        own = replace(guard, name=name, gates=gates.gates[i])
        yield own, float(gates.thresholds[i]), again


def guarded_answers(
    chat: ChatModel, guards: Sequence[tuple[SteerGuard, float, float | None]], strength: float
) -> Answers:
    """The model's answers under all of `guards`, each with its thresholds on prompts and on
    generated tokens."""
    return partial(
        chat.answer,
        bank=bank_of([guard for guard, _, _ in guards], chat.device),
        guards=[
            RowGuard(guard.name, threshold, strength, True, recheck)
            for guard, threshold, recheck in guards
        ],
    )


def recheck_level(
    gates: SubjectGates,
    gate: FittedGate,
    states: TokenStates,
    rows: Sequence[RetainPrompt],
    rates: GateRates,
) -> float:
    """The level for prompt and answer together, from the states of retain prompts with the bare
    answers; never lower than that of prompts."""
    scores = states.only(gate.tokens).scores(range(len(gate.layers)), gates.gates, gate.pool)
    largest = gates.standardised(scores, answered=True).amax(0).tolist()
    return max(gates.level, rates.threshold(largest, [row.near for row in rows]))
