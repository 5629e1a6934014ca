"""Suppression lists: the nearest entry counts, its number is in the score, and room is bounded."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from steering.engines.transformers.engine import TransformersEngine
from steering.hidden.bank import HiddenBank, NoRoom, Room
from steering.hidden.rows import RowGuard
from steering.methods.steer import SteerGuards
from steering.methods.suppression_list import (
    BLOCKS,
    HIGHEST,
    MOST_ENTRIES,
    PENALTY,
    SuppressionList,
    SuppressionLists,
    entry_of,
)
from tests.steering.engines.driver import serve, start
from tests.steering.tiny import WIDTH, prompt, random_guard, tiny_model

DIMENSIONS = 4
SENSE, ACT = (0, 1), (2,)
STEP = HIGHEST * 2.0**-9
"""Scores are kept in steps of this."""


def _list(entries: int, seed: int = 0, name: str = "people", **other: Any) -> SuppressionList:
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    fields: dict[str, Any] = {
        "name": name,
        "sense_layers": SENSE,
        "gates": 0.1 * random(entries, len(SENSE), WIDTH),
        "bias": 0.1 * random(entries),
        "projection": 0.2 * random(len(SENSE), WIDTH, DIMENSIONS),
        "centres": random(entries, DIMENSIONS),
        "radius": 5.0,
        "act_layers": ACT,
        "directions": random(3, len(ACT), WIDTH),
        "rest": 2,
    }
    return SuppressionList(**fields | other)


def _scores(stack: SuppressionLists, states: Tensor) -> Tensor:
    assert not stack.sense(SENSE[0], states[:, 0]).any()
    return stack.sense(SENSE[1], states[:, 1])[:, 0]


def test_the_score_is_that_of_the_best_entry_among_the_nearest_of_each_block() -> None:
    fitted, states = _list(24), torch.randn(50, len(SENSE), WIDTH)
    scores = _scores(SuppressionLists([fitted]), states)
    exact = torch.einsum("tlw,elw->te", states, fitted.gates) + fitted.bias
    projected = torch.einsum("tlw,lwd->td", states, fitted.projection)
    distance = (projected[:, None] - fitted.centres).square().sum(-1)
    lost = exact - PENALTY * (distance / fitted.radius - 1).clamp(min=0)
    nearest = distance.view(50, -1, BLOCKS).argmin(1) * BLOCKS + torch.arange(BLOCKS)
    best, place = lost.gather(1, nearest).max(1)
    assert torch.allclose(scores, best.clamp(0, HIGHEST - STEP), atol=2 * STEP)
    assert (best > 0.1).any()
    high = best > STEP
    entries = nearest.gather(1, place[:, None])[:, 0]
    found = [entry_of(score) for score in scores.tolist()]
    assert [e for e, is_high in zip(found, high, strict=True) if is_high] == entries[high].tolist()


def test_one_entry_and_the_largest_list_have_exact_numbers() -> None:
    # the state of the last entry is its own centre, and its gate answers to it alone
    entries = 3000
    centres = torch.randn(entries, DIMENSIONS)
    state = torch.zeros(1, 2, WIDTH)
    state[0, 0, :DIMENSIONS] = centres[-1]
    projection = torch.zeros(2, WIDTH, DIMENSIONS)
    projection[0, :DIMENSIONS] = torch.eye(DIMENSIONS)
    gates = torch.zeros(entries, 2, WIDTH)
    gates[-1, 0, :DIMENSIONS] = centres[-1] / centres[-1].square().sum()
    fitted = _list(
        entries, gates=gates, bias=torch.zeros(entries), centres=centres, projection=projection
    )
    (score,) = _scores(SuppressionLists([fitted]), state).tolist()
    assert score == pytest.approx(1.0, abs=2 * STEP) and entry_of(score) == entries - 1
    (score,) = _scores(SuppressionLists([_list(1)]), torch.randn(1, 2, WIDTH)).tolist()
    assert entry_of(score) == 0


def test_a_score_without_the_states_of_the_first_layers_is_no_number() -> None:
    stack, states = SuppressionLists([_list(5)]), torch.randn(3, 2, WIDTH)
    assert stack.sense(SENSE[1], states[:, 1]).isnan().all()
    stack.sense(SENSE[0], states[:2, 0])  # of another forward
    assert stack.sense(SENSE[1], states[:, 1]).isnan().all()
    states[0] = torch.nan
    scores = _scores(stack, states)
    assert scores[0].isnan() and scores[1:].isfinite().all()


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        ({"bias": torch.zeros(3)}, "bias must be"),
        ({"centres": torch.zeros(4, DIMENSIONS)}, "centres must be"),
        ({"radius": 0.0}, "radius must be over 0"),
        ({"directions": torch.zeros(3, 2, WIDTH)}, "directions must be"),
    ],
)
def test_a_list_of_other_shapes_is_refused(other: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        _list(5, **other)


def test_more_entries_than_a_score_can_name_are_refused() -> None:
    count = MOST_ENTRIES + 1
    with pytest.raises(ValueError, match=f"{count} entries"):
        _list(count)


def test_rows_with_a_list_are_steered_where_it_fires_and_others_keep_their_bits() -> None:
    model = tiny_model()
    bank = HiddenBank([SteerGuards([random_guard("one")]), SuppressionLists([_list(40)])])
    engine = TransformersEngine(model, bank, capacity=4)
    prompts = [prompt(7, seed) for seed in range(4)]
    guards = [
        RowGuard("people", -1.0, 30.0, recheck=-1.0),
        RowGuard("people", HIGHEST, 30.0, recheck=HIGHEST),
    ]
    starts = [start(p, [guards[i % 2]]) for i, p in enumerate(prompts)]
    tokens, readings = serve(engine, starts, tokens=6)
    engine.close()
    bare = TransformersEngine(model, HiddenBank(), capacity=4)
    plain, _ = serve(bare, [start(p) for p in prompts], tokens=6)
    bare.close()
    for i in range(4):
        fires = i % 2 == 0
        assert readings[i]["people"].fired == fires and readings[i]["people"].valid
        same = [t.token for t in tokens[i]] == [t.token for t in plain[i]]
        assert same != fires


def test_lists_are_swapped_in_place_as_far_as_there_is_room() -> None:
    room = Room(guards=4, steps=4, pool=2, most=4)
    before = [_list(5), _list(9, 1, "more")]
    bank = HiddenBank([SuppressionLists(before)], room=room)
    kept = [tensor.data_ptr() for tensor in bank.tensors()]
    states = torch.randn(6, 2, WIDTH)
    # two lists at places that were empty, of different radii
    new = [_list(1, 4, "new", radius=0.5), _list(2, 6, "newer", radius=50.0)]
    fresh = [_list(8, 2), _list(3, 3, "more"), *new]
    bank.take(HiddenBank([SuppressionLists(fresh)]))
    assert [tensor.data_ptr() for tensor in bank.tensors()] == kept
    for layer, column in ((0, 0), (1, 1)):
        found = bank.sense(layer, states[:, column])
    for i, each in enumerate(fresh):
        assert torch.allclose(found[:, i], _scores(SuppressionLists([each]), states), atol=STEP)
    unchanged = [tensor.clone() for tensor in bank.tensors()]
    with pytest.raises(NoRoom, match="300 entries where there is room"):
        bank.take(HiddenBank([SuppressionLists([_list(2), _list(300, 5, "more")])]))
    assert all(torch.equal(a, b) for a, b in zip(unchanged, bank.tensors(), strict=True))
