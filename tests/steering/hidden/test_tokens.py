"""Guards that score an image's tokens, those of the text, or the last one of the prompt."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from steering.hidden.bank import HiddenBank, Room, Tokens
from steering.hidden.captured import CapturedTable
from steering.hidden.packed import PackedTable
from steering.hidden.packed_forward import PackedForward
from steering.hidden.rows import RowGuard
from steering.hidden.table import Table
from steering.methods.fitted import FittedGuard
from steering.methods.steer import SteerGuard, bank_of, loaded

SCORES = (9.0, 1.0, 2.0, 4.0, 3.0)
"""The score of each token of a prompt; the first is the sink."""
IMAGE = (False, False, True, True, False)
EXPECTED: dict[Tokens, float] = {"all": 4.0, "text": 3.0, "image": 4.0, "last": 3.0}
GENERATED = 8.0
AFTERWARDS: dict[Tokens, float] = {"all": 8.0, "text": 8.0, "image": 4.0, "last": 8.0}
"""The score once a token of the score GENERATED has come."""


def _guard(tokens: Tokens, pool: int = 1) -> SteerGuard:
    return SteerGuard(
        name=tokens,
        sense_layers=(0,),
        gates=torch.tensor([[1.0, 0.0]]),
        act_layers=(0,),
        directions=torch.ones(1, 1, 2),
        pool=pool,
        tokens=tokens,
    )


def _bank(pool: int = 1) -> HiddenBank:
    return bank_of([_guard(tokens, pool) for tokens in EXPECTED])


GUARDS = [RowGuard(tokens, 100.0, 1.0, recheck=100.0) for tokens in EXPECTED]


def _states(*scores: float) -> Tensor:
    return torch.tensor([[score, 0.0] for score in scores])[None]


def _scores(table: Table | PackedTable, row: int = 0) -> dict[str, float]:
    readings = table.readings(row)
    assert all(reading.valid for reading in readings.values())
    return {name: reading.score for name, reading in readings.items()}


def _forward(table: Table, real: list[bool] | None, states: Tensor, **more: object) -> None:
    mask = None if real is None else torch.tensor([real])
    table.begin(slice(0, 1), mask, **more)  # type: ignore[arg-type]
    table.sense(0, states)


def test_a_padded_row_scores_the_tokens_that_its_guard_asks_for() -> None:
    table = Table(_bank(), 1)
    table.add(0, GUARDS)
    real = [False, True, True, True, True]
    _forward(table, real, _states(*SCORES), image=torch.tensor([IMAGE]))
    assert _scores(table) == EXPECTED
    _forward(table, None, _states(GENERATED))
    assert _scores(table) == AFTERWARDS


def test_a_prompt_read_in_parts_has_one_last_token() -> None:
    table = Table(_bank(), 1)
    table.add(0, GUARDS)
    first = torch.tensor([IMAGE[:4]])
    _forward(table, [False, True, True, True], _states(*SCORES[:4]), ends=False, image=first)
    _forward(table, [True], _states(SCORES[4]))
    assert _scores(table) == EXPECTED


def test_without_images_a_guard_of_images_has_nothing_to_score() -> None:
    table = Table(_bank(), 1)
    table.add(0, GUARDS)
    _forward(table, [False, True, True, True, True], _states(*SCORES))
    assert _scores(table) == {"all": 4.0, "text": 4.0, "image": 0.0, "last": 3.0}


def test_tokens_that_do_not_count_leave_a_mean_as_missing_ones_do() -> None:
    table = Table(_bank(pool=3), 1)
    table.add(0, GUARDS)
    real = [False, True, True, True, True]
    _forward(table, real, _states(*SCORES), image=torch.tensor([IMAGE]))
    expected = {"all": 9 / 3, "text": 4 / 3, "image": 6 / 3, "last": 3 / 3}
    assert _scores(table) == pytest.approx(expected)


@pytest.mark.parametrize("cut", [0, 1, 3, 4])
def test_a_packed_prompt_scores_the_same_however_it_is_cut(cut: int) -> None:
    table = PackedTable(_bank(), 1, places=16, most=len(GUARDS))
    table.add(0, GUARDS)
    parts = [(0, cut), (cut, len(SCORES))] if cut else [(0, len(SCORES))]
    for first, last in parts:
        _packed(table, SCORES[first:last], IMAGE[first:last], first, len(SCORES))
    assert _scores(table) == EXPECTED
    _packed(table, [GENERATED], None, len(SCORES), len(SCORES))
    assert _scores(table) == AFTERWARDS


def test_a_longer_request_on_the_same_places_has_another_last_token() -> None:
    table = PackedTable(_bank(), 1, places=16, most=len(GUARDS))
    table.add(0, GUARDS)
    _packed(table, SCORES, IMAGE, 0, len(SCORES))
    table.add(0, GUARDS)
    _packed(table, [0.5], None, len(SCORES), len(SCORES) + 1)
    assert _scores(table) == EXPECTED | {"last": 0.5}


def _packed(
    table: PackedTable,
    scores: tuple[float, ...] | list[float],
    image: tuple[bool, ...] | None,
    first: int,
    prompt: int,
) -> None:
    def before(stretches: np.ndarray, count: int) -> Tensor:
        return torch.arange(count).expand(len(stretches), -1)

    table.begin(
        PackedForward(
            rows=[0],
            lengths=[len(scores)],
            first=[first + 1 - prompt],
            prompts=[prompt],
            places=torch.arange(first, first + len(scores)),
            before=before,
            image=None if image is None else torch.tensor(image),
        )
    )
    table.sense(0, _states(*scores)[0])


def test_an_artifact_says_which_tokens_count_and_an_older_one_means_all() -> None:
    tensors = {"gates": np.ones((1, 2), np.float32), "directions": np.ones((1, 2), np.float32)}
    settings = {"sense_layers": [0], "act_layers": [0], "pool": 1, "rest": 1, "schedule": [1.0]}
    assert loaded(FittedGuard("g", tensors, settings)).placement.tokens == "all"
    image = loaded(FittedGuard("g", tensors, settings | {"tokens": "image"}))
    assert image.placement.tokens == "image"
    with pytest.raises(ValueError, match="guard g: tokens must be one of all, text, image, last"):
        bank_of([loaded(FittedGuard("g", tensors, settings | {"tokens": "every"}))])


def test_a_captured_forward_tells_the_last_token_of_a_prompt_that_ends_with_an_image() -> None:
    room = Room(guards=4, steps=1, pool=1, most=4)
    bank = HiddenBank(_bank().stacks, _bank().device, room)
    table = CapturedTable(bank, 2, 16, 4, 4)
    table.add(0, GUARDS)
    places = torch.arange(4)

    def forward(first: int, length: int, image: list[bool]) -> PackedForward:
        return PackedForward(
            [0],
            [length],
            [first - 3],
            [4],
            places[first : first + length],
            lambda stretches, count: places[:count].expand(len(stretches), -1),
            torch.tensor(image),
        )

    table.begin(forward(0, 3, [False, False, True]))
    table.sense(0, _states(*SCORES[:3])[0])
    table.begin(forward(3, 1, [True]), captured=True)
    table.sense(0, _states(SCORES[3])[0])
    # the sink does not count; the text is the second token alone
    assert _scores(table) == {"all": 4.0, "text": 1.0, "image": 4.0, "last": 4.0}
