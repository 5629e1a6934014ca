"""One guard for each subject of a forget file, with a false-positive rate for all together.

The statistics of the retain prompts are computed once and shared; the prompts of all other subjects
are near misses of each. A request carries all of these guards, so what counts is whether any of
them fires: scores are standardised guard by guard (by the retain prompts of the train split), and
the threshold is the conformal one of the largest. Directions and strength are those of the guard of
the whole set, and so are the tokens; the layers are those at which the guards of the subjects catch
the most.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from guard.data.prompts import ForgetPrompt, RetainPrompt
from guard.errors import DataError
from guard.fitting.steering.gate_search import FittedGate, GateStates, Rates
from guard.fitting.steering.gates import RetainStatistics, TokenStates
from steering.methods.steer import SteerGuard


@dataclass(frozen=True)
class SubjectGates:
    """Gates of `names`, `[subjects, layers, width]`, with `thresholds [subjects]`.

    `mean` and `spread [subjects]` are those of each gate's scores on retain prompts, `level` and
    `recheck_level` (None for none) the thresholds of standardised scores. Of the validation split
    there are the largest score of each prompt and, for forget prompts, that of its subject's gate,
    `own`, all standardised.
    """

    names: tuple[str, ...]
    gates: Tensor
    mean: Tensor
    spread: Tensor
    level: float
    recheck_level: float | None
    largest_forget: tuple[float, ...]
    own: tuple[float, ...]
    largest_far: tuple[float, ...]
    largest_near: tuple[float, ...]

    def as_one(self, gate: FittedGate) -> FittedGate:
        """All gates seen as one that fires where any of them does: its scores are the largest
        standardised ones. `gate` is that of the whole set."""
        return replace(
            gate,
            threshold=self.level,
            forget=self.largest_forget,
            far=self.largest_far,
            near=self.largest_near,
        )

    @property
    def thresholds(self) -> Tensor:
        """The threshold of each gate on prompts, `[subjects]`."""
        return self.mean + self.level * self.spread

    @property
    def rechecks(self) -> Tensor | None:
        """The threshold of each gate on generated tokens, `[subjects]`."""
        level = self.recheck_level
        return None if level is None else self.mean + level * self.spread


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
    states: GateStates, tried: Sequence[FittedGate], known: Sequence[ForgetPrompt], rates: Rates
) -> tuple[FittedGate, SubjectGates]:
    """The gates of all subjects that together catch the most of `known`, at the layers of one of
    `tried`, and that one: layers at which one gate knows the whole set need not be those at which
    many gates tell each of it from the rest."""
    fitted = [(gate, fit_subject_gates(states, gate, known, rates)) for gate in tried]
    return max(fitted, key=lambda pair: pair[1].as_one(pair[0]).recall)


def fit_subject_gates(
    states: GateStates, gate: FittedGate, known: Sequence[ForgetPrompt], rates: Rates
) -> SubjectGates:
    """A gate for each subject, at the layers and tokens of `gate`; `known` are the forget rows of
    the validation split."""
    chosen, indices = states.only(gate.tokens), states.indices(gate.layers)
    names = tuple(dict.fromkeys(row.subject for row in states.forget_rows))
    statistics = RetainStatistics(chosen.retain, chosen.near, indices)
    everyone = statistics.gram_of(chosen.forget)
    gates = []
    for name in names:
        mask = torch.tensor([row.subject == name for row in states.forget_rows])
        own = chosen.forget.of(mask)
        gates.append(statistics.gate(own, everyone - statistics.gram_of(own)))
    stacked = torch.stack(gates)
    trained = chosen.retain.scores(indices, stacked, gate.pool)
    mean, spread = trained.mean(1), trained.std(1).clamp(min=1e-6)

    def standard(part: TokenStates) -> Tensor:
        scores = part.scores(indices, stacked, gate.pool)
        return (scores - mean[:, None]) / spread[:, None]

    forget, held_out = standard(chosen.known), standard(chosen.held_out).amax(0).tolist()
    rows = [names.index(row.subject) for row in known]
    near = states.held_out_near
    return SubjectGates(
        names=names,
        gates=stacked,
        mean=mean,
        spread=spread,
        level=rates.threshold(held_out, near),
        recheck_level=None,
        largest_forget=tuple(forget.amax(0).tolist()),
        own=tuple(forget[rows, range(len(rows))].tolist()),
        largest_far=tuple(s for s, is_near in zip(held_out, near, strict=True) if not is_near),
        largest_near=tuple(s for s, is_near in zip(held_out, near, strict=True) if is_near),
    )


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


def recheck_level(
    gates: SubjectGates,
    gate: FittedGate,
    states: TokenStates,
    rows: Sequence[RetainPrompt],
    rates: Rates,
) -> float:
    """The level for prompt and answer together, from the states of retain prompts with the bare
    answers; never lower than that of prompts."""
    scores = states.only(gate.tokens).scores(range(len(gate.layers)), gates.gates, gate.pool)
    largest = ((scores - gates.mean[:, None]) / gates.spread[:, None]).amax(0).tolist()
    return max(gates.level, rates.threshold(largest, [row.near for row in rows]))
