"""Stacked overlays against one row and one guard at a time in float64, and what must keep its
bits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from steering.hidden.rows import RowGuard
from steering.images.projection import Overlay, OverlayBank, Pairs, pairs_of

LAYERS = {"k": 5, "v": 7, "other": 6}
GROUPS = {"text": ("k", "v"), "more": ("other",)}
WIDTHS = {"text": 16, "more": 8}
TOKENS = 6


def overlay(seed: int, rank: int, **changed: Any) -> Overlay:
    draw = torch.Generator().manual_seed(seed)
    whole: dict[str, Any] = {
        "groups": GROUPS,
        "reads": {g: torch.randn(rank, WIDTHS[g], generator=draw) for g in GROUPS},
        "writes": {n: torch.randn(rank, out, generator=draw) for n, out in LAYERS.items()},
    }
    return Overlay(**(whole | changed))


class Stack:
    def __init__(self, **overlays: Overlay) -> None:
        self.names, self.overlays = tuple(overlays), tuple(overlays.values())


OWN = {"a": overlay(0, 2), "b": overlay(1, 3), "c": overlay(2, 1)}


def bank() -> OverlayBank:
    first, second = Stack(a=OWN["a"]), Stack(b=OWN["b"], c=OWN["c"])
    return OverlayBank([first, second])  # type: ignore[list-item]


def carried(*guards: tuple[str, float]) -> list[RowGuard]:
    return [RowGuard(name, 0.0, strength) for name, strength in guards]


ROWS = [carried(("a", 1.0)), carried(), carried(("c", 0.5), ("b", 2.0)), carried(("b", 1.0))]


def states(group: str, rows: int) -> Tensor:
    return torch.randn(rows, TOKENS, WIDTHS[group], generator=torch.Generator().manual_seed(9))


def added(made: OverlayBank, layer: str, rows: list[list[RowGuard]], x: Tensor) -> Tensor:
    pairs = pairs_of(made.strengths(rows))
    assert pairs is not None
    output = torch.ones(len(rows), TOKENS, LAYERS[layer])
    group = made.group_of[layer]
    return made.added(layer, output, made.coordinates(group, x, pairs), pairs)


@pytest.mark.parametrize("layer", LAYERS)
def test_each_row_gets_its_own_edits(layer: str) -> None:
    made = bank()
    group = made.group_of[layer]
    x = states(group, len(ROWS))
    got = added(made, layer, ROWS, x)
    for row, guards in enumerate(ROWS):
        delta = torch.zeros(LAYERS[layer], WIDTHS[group]).double()
        for guard in guards:
            own = OWN[guard.name]
            delta += guard.strength * own.writes[layer].double().T @ own.reads[group].double()
        expected = 1.0 + x[row].double() @ delta.T
        torch.testing.assert_close(got[row].double(), expected, atol=1e-4, rtol=1e-5)
    assert torch.equal(got[1], torch.ones(TOKENS, LAYERS[layer]))


def test_a_row_has_the_same_bits_alone_and_in_company() -> None:
    made, x = bank(), states("text", len(ROWS))
    together = added(made, "k", ROWS, x)
    for row, guards in enumerate(ROWS):
        if guards:
            assert torch.equal(added(made, "k", [guards], x[row : row + 1])[0], together[row])


@pytest.mark.parametrize(("tokens", "width", "rank"), [(8, 384, 1), (32, 16, 1), (32, 384, 1)])
def test_one_pair_has_the_bits_of_several(tokens: int, width: int, rank: int) -> None:
    # of these sizes a CPU sums otherwise where there is one matrix only
    own = Overlay({"g": ("k",)}, {"g": torch.randn(rank, width)}, {"k": torch.randn(rank, 16)})
    made = OverlayBank([Stack(a=own)])  # type: ignore[list-item]
    x, output = torch.randn(3, tokens, width), torch.zeros(3, tokens, 16)

    def of(rows: slice) -> Tensor:
        pairs = pairs_of(torch.ones(3, 1)[rows])
        assert pairs is not None
        return made.added("k", output[rows], made.coordinates("g", x[rows], pairs), pairs)

    assert torch.equal(of(slice(1, 2)), of(slice(3))[1:2])


def test_a_negative_zero_stays_one() -> None:
    made, pairs = bank(), pairs_of(bank().strengths(ROWS))
    assert isinstance(pairs, Pairs)
    output = torch.full((4, TOKENS, 5), -0.0)
    got = made.added("k", output, made.coordinates("text", states("text", 4), pairs), pairs)
    assert torch.signbit(got[1]).all()


def test_the_output_keeps_its_precision() -> None:
    made, pairs = bank(), pairs_of(bank().strengths(ROWS))
    assert pairs is not None
    output = torch.ones(4, TOKENS, 5, dtype=torch.bfloat16)
    x = states("text", 4).bfloat16()
    got = made.added("k", output, made.coordinates("text", x, pairs), pairs)
    assert got.dtype == torch.bfloat16 and got.isfinite().all()


def test_nobody_carries_anything() -> None:
    assert pairs_of(bank().strengths([[], []])) is None
    assert len(OverlayBank()) == 0 and OverlayBank().strengths([[], []]).shape == (2, 0)


def test_an_unknown_guard_is_an_error() -> None:
    assert bank().names == ("a", "b", "c") and "b" in bank() and "z" not in bank()
    with pytest.raises(KeyError, match="z"):
        bank().strengths([carried(("z", 1.0))])


@pytest.mark.parametrize(
    ("changed", "fault"),
    [
        ({"groups": {"text": ("k", "v")}}, "each layer must be of one group"),
        ({"groups": {"text": ("k", "v"), "x": ("other",)}}, "each group have its states"),
        ({"reads": {g: torch.ones(3, w) for g, w in WIDTHS.items()}}, "another rank"),
    ],
)
def test_an_overlay_that_does_not_hold_is_refused(changed: Any, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        overlay(0, 2, **changed)


def test_overlays_that_cannot_be_stacked_are_refused() -> None:
    with pytest.raises(ValueError, match="same name"):
        OverlayBank([Stack(a=OWN["a"]), Stack(a=OWN["b"])])  # type: ignore[list-item]
    apart = {g: torch.ones(2, 16) for g in ("1", "2", "3")}
    other = Overlay({"1": ("k",), "2": ("v",), "3": ("other",)}, apart, OWN["a"].writes)
    with pytest.raises(ValueError, match="overlay of z is on other layers than a's"):
        OverlayBank([Stack(a=OWN["a"], z=other)])  # type: ignore[list-item]
    wide = overlay(3, 2, reads={"text": torch.ones(2, 4), "more": torch.ones(2, 8)})
    with pytest.raises(ValueError, match="overlays of text are of different widths"):
        OverlayBank([Stack(a=OWN["a"], z=wide)])  # type: ignore[list-item]
