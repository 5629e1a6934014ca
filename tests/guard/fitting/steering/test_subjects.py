"""One gate for each subject: each fires for its own, and all together keep one rate."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch

from guard.data.prompts import ForgetPrompt
from guard.errors import DataError
from guard.fitting.steering.artifacts import file_name
from guard.fitting.steering.gate_search import FittedGate, GateRates, GateStates, share_over
from guard.fitting.steering.gates import RetainStatistics, TokenStates
from guard.fitting.steering.subjects import (
    SubjectGates,
    best_subject_gates,
    fit_subject_gates,
    require_subjects,
)

WIDTH, LAYERS, TOKENS, SUBJECTS = 24, 2, 8, 6
RATES = GateRates(0.1, 0.1)


def _states(axes: list[int | None], seed: int) -> TokenStates:
    """Sequences of noise; some tokens of each lean towards its axis."""
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(len(axes), TOKENS, LAYERS, WIDTH, generator=generator)
    for i, axis in enumerate(axes):
        if axis is not None:
            states[i, 3:6, :, axis] += 5.0
    return TokenStates(
        states=states.flatten(0, 1).half(),
        sequence=torch.arange(len(axes)).repeat_interleave(TOKENS),
        behind_prefix=torch.ones(len(axes) * TOKENS, dtype=torch.bool),
        count=len(axes),
    )


def _rows(axes: list[int | None]) -> tuple[ForgetPrompt, ...]:
    return tuple(
        ForgetPrompt(prompt="p", facts=("x",), subject=f"subject {axis}", split="train")
        for axis in axes
    )


SHOWN: list[int | None] = [i % SUBJECTS for i in range(40 * SUBJECTS)]
OTHERS: list[int | None] = [None if i % 2 else SUBJECTS + i % 9 for i in range(400)]


@pytest.fixture(scope="module")
def states() -> GateStates:
    subjects = SHOWN
    others = OTHERS
    return GateStates(
        layers=(3, 5),
        forget=_states(subjects, 1),
        forget_rows=_rows(subjects),
        retain=_states(others, 2),
        near=torch.tensor([axis is not None for axis in others]),
        known=_states(subjects, 3),
        altered=_states(subjects, 12),
        held_out=_states(others, 4),
        held_out_near=tuple(axis is not None for axis in others),
    )


def _at(*layers: int) -> FittedGate:
    """A gate of the whole set, of which only the layers matter here."""
    return FittedGate(layers, torch.zeros(len(layers), WIDTH), 0.0, (), (), ())


@pytest.fixture(scope="module", params=["steps", "deviations"])
def gates(states: GateStates, request: pytest.FixtureRequest) -> SubjectGates:
    units = dict(
        zip(
            ("steps", "deviations"),
            fit_subject_gates(states, _at(3, 5), _rows(SHOWN), RATES),
            strict=True,
        )
    )
    return units[request.param]


def test_the_layers_are_those_at_which_the_subjects_are_told_apart(states: GateStates) -> None:
    def deaf(part: TokenStates) -> TokenStates:
        noise = torch.randn(part.states.shape, generator=torch.Generator().manual_seed(11)).half()
        return replace(part, states=torch.cat([part.states[:, :1], noise[:, 1:]], 1))

    parts = {name: deaf(getattr(states, name)) for name in ("forget", "retain", "known", "altered")}
    heard = replace(states, **parts, held_out=deaf(states.held_out))
    gate, subjects = best_subject_gates(heard, [_at(5), _at(3)], _rows(SHOWN), RATES)
    assert gate.layers == (3,) and share_over(subjects.own, subjects.level) > 0.95


def test_a_subject_whose_name_is_shared_is_told_apart_as_well(states: GateStates) -> None:
    """Half of the near misses lean towards subject 0, more or less: the scores of its gate on them
    vary. A few lean towards another subject: they are far out among the scores of its gate, and
    still far below those of the subject's own prompts."""

    def shared(part: TokenStates, seed: int) -> TokenStates:
        generator = torch.Generator().manual_seed(seed)
        turned = part.states.clone().unflatten(0, (len(OTHERS), TOKENS))
        for i, axis in enumerate(OTHERS):
            if axis is None:
                continue
            if i % 4 == 0:
                turned[i, 3:6, :, 0] += 4.0 * float(torch.rand((), generator=generator))
            if i % 40 == 2:
                turned[i, 3:6, :, 1 + i // 40 % (SUBJECTS - 1)] += 4.0
        return replace(part, states=turned.flatten(0, 1))

    crowded = replace(states, retain=shared(states.retain, 3), held_out=shared(states.held_out, 4))
    steps, deviations = fit_subject_gates(crowded, _at(3, 5), _rows(SHOWN), RATES)

    def caught(gates: SubjectGates) -> float:
        scores = [s for s, axis in zip(gates.own, SHOWN, strict=True) if axis == 0]
        return share_over(scores, gates.level)

    assert caught(deviations) < 0.8 < caught(steps)
    _, best = best_subject_gates(crowded, [_at(3, 5)], _rows(SHOWN), RATES)
    assert torch.equal(best.unit, steps.unit)


def test_each_gate_fires_for_its_own_subject(gates: SubjectGates) -> None:
    assert gates.names == tuple(f"subject {i}" for i in range(SUBJECTS))
    assert share_over(gates.own, gates.level) > 0.95
    fresh = _states([*range(SUBJECTS)] * 20, 5)
    scores = fresh.scores([0, 1], gates.gates, 3)
    fired = scores > gates.thresholds[:, None]
    own = torch.eye(SUBJECTS, dtype=torch.bool).repeat(1, 20)
    assert fired[own].float().mean() > 0.95
    assert fired[~own].float().mean() < 0.05


def test_the_rate_is_that_of_all_gates_together(gates: SubjectGates) -> None:
    fresh = _states([None] * 2000, 6).scores([0, 1], gates.gates, 3)
    fired = fresh > gates.thresholds[:, None]
    assert fired.any(0).float().mean() <= 0.07  # half of the rate is for the prompt
    assert fired.float().mean(1).max() < 0.05
    assert share_over(gates.largest_far, gates.level) <= RATES.far / 2


def test_pooled_scores_of_many_gates_are_those_of_each(gates: SubjectGates) -> None:
    states = _states([0, None, 3], 7)
    together = states.scores([0, 1], gates.gates, 3)
    for row, gate in zip(together, gates.gates, strict=True):
        assert torch.allclose(row, states.pooled(states.score([0, 1], gate)), atol=1e-4)


def test_near_misses_of_another_gate_are_weighted_as_those_of_the_retain_set() -> None:
    retain, more = _states([None] * 40, 8), _states([0] * 10, 9)
    statistics = RetainStatistics.of(retain, torch.zeros(40, dtype=torch.bool), [0, 1])
    forget = _states([1] * 10, 10)
    plain, aware = statistics.gate(forget), statistics.gate(forget, statistics.gram_of(more))
    scored = [more.pooled(more.score([0, 1], gate)).mean() for gate in (plain, aware)]
    assert scored[1] < scored[0]


def test_every_row_needs_a_subject_and_every_subject_a_row_to_fit_on() -> None:
    named = _rows([0, 1])
    require_subjects(named)
    nameless = ForgetPrompt(prompt="p", facts=("x",))
    with pytest.raises(DataError, match="1 of 3 forget prompts have no subject"):
        require_subjects([*named, nameless])
    alone = ForgetPrompt(prompt="p", facts=("x",), subject="Vera", split="test")
    with pytest.raises(DataError, match="no forget prompt about 'Vera' is in the train split"):
        require_subjects([*named, alone])


def test_the_file_of_a_subject_has_letters_digits_and_hyphens() -> None:
    assert file_name("Vera Lindgren") == "vera-lindgren"
    assert file_name("../José_O'Neil 2") == "jose-o-neil-2"
    # as a configuration takes the names of guards
    others = [file_name(name) for name in ("東京", "京都", "???")]
    assert len(set(others)) == 3 and all(re.fullmatch(r"x[0-9a-f]{8}", name) for name in others)


def test_the_first_subject_can_have_half_of_the_rates_for_itself(states: GateStates) -> None:
    """Where retain prompts score high for another subject, the first one keeps its threshold."""
    held_out = _states([3 if i % 8 == 0 else axis for i, axis in enumerate(OTHERS)], 4)
    crowded = replace(states, held_out=held_out)
    rates = GateRates(0.1, 0.1)
    for plain, apart in zip(
        fit_subject_gates(crowded, _at(3, 5), _rows(SHOWN), rates),
        fit_subject_gates(crowded, _at(3, 5), _rows(SHOWN), rates, first_apart=True),
        strict=True,
    ):
        assert apart.thresholds[0] < plain.thresholds[0] - 0.1
        largest = (*apart.largest_far, *apart.largest_near)
        assert share_over(largest, apart.level) <= 0.1
        scores = held_out.scores([0, 1], apart.gates, 3)
        fired = (scores > apart.thresholds[:, None]).any(0)
        assert fired.float().mean() <= 0.1
    # too few prompts for halves of these rates: as without
    few = GateRates(0.011, 0.011)
    for plain, apart in zip(
        fit_subject_gates(crowded, _at(3, 5), _rows(SHOWN), few),
        fit_subject_gates(crowded, _at(3, 5), _rows(SHOWN), few, first_apart=True),
        strict=True,
    ):
        assert torch.equal(apart.thresholds, plain.thresholds)


def test_thresholds_take_a_share_of_the_room_up_to_a_subjects_own_prompts(
    states: GateStates,
) -> None:
    rates = GateRates(0.1, 0.1)
    for plain, half in zip(
        fit_subject_gates(states, _at(3, 5), _rows(SHOWN), rates),
        fit_subject_gates(states, _at(3, 5), _rows(SHOWN), rates, room=0.5),
        strict=True,
    ):
        scores = states.known.scores([0, 1], plain.gates, 3)
        for i, name in enumerate(plain.names):
            own = [j for j, row in enumerate(_rows(SHOWN)) if row.subject == name]
            lowest, threshold = float(scores[i, own].min()), float(plain.thresholds[i])
            middle = threshold + max(lowest - threshold, 0) / 2
            assert float(half.thresholds[i]) == pytest.approx(middle, rel=1e-3, abs=1e-5)
        assert share_over(half.own, half.level) >= 0.9 * share_over(plain.own, plain.level)
