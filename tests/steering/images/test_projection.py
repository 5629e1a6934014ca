"""Stacked overlays against one row and one guard at a time in float64, and what must keep its
bits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

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


OWN = {"a": overlay(0, 2), "b": overlay(1, 3), "c": overlay(2, 1)}


def bank() -> OverlayBank:
    return OverlayBank(OWN)


def carried(*guards: tuple[str, float]) -> list[RowGuard]:
    return [RowGuard(name, 0.0, strength) for name, strength in guards]


ROWS = [carried(("a", 1.0)), carried(), carried(("c", 0.5), ("b", 2.0)), carried(("b", 1.0))]


def states(group: str, rows: int) -> Tensor:
    return torch.randn(rows, TOKENS, WIDTHS[group], generator=torch.Generator().manual_seed(9))


def group_of(layer: str) -> str:
    return next(group for group, layers in GROUPS.items() if layer in layers)


def module(layer: str) -> nn.Linear:
    return nn.Linear(WIDTHS[group_of(layer)], LAYERS[layer])


def overlaid(made: OverlayBank, layer: str, output: Tensor, x: Tensor, pairs: Pairs) -> Tensor:
    coordinates = made.coordinates(layer, x, pairs, module(layer))
    return made.added(layer, output, coordinates, pairs, module(layer))


def added(made: OverlayBank, layer: str, rows: list[list[RowGuard]], x: Tensor) -> Tensor:
    pairs = made.pairs(made.strengths(rows))[layer]
    return overlaid(made, layer, torch.ones(len(rows), TOKENS, LAYERS[layer]), x, pairs)


@pytest.mark.parametrize("layer", LAYERS)
def test_each_row_gets_its_own_edits(layer: str) -> None:
    made = bank()
    group = group_of(layer)
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
    made = OverlayBank({"a": own})
    x, output = torch.randn(3, tokens, width), torch.zeros(3, tokens, 16)

    def of(rows: slice) -> Tensor:
        pairs = pairs_of(torch.ones(3, 1)[rows])
        assert pairs is not None
        layer = nn.Linear(width, 16)
        coordinates = made.coordinates("k", x[rows], pairs, layer)
        return made.added("k", output[rows], coordinates, pairs, layer)

    assert torch.equal(of(slice(1, 2)), of(slice(3))[1:2])


def test_a_negative_zero_stays_one() -> None:
    made, pairs = bank(), pairs_of(bank().strengths(ROWS))
    assert isinstance(pairs, Pairs)
    output = torch.full((4, TOKENS, 5), -0.0)
    got = overlaid(made, "k", output, states("text", 4), pairs)
    assert torch.signbit(got[1]).all()


def test_the_output_keeps_its_precision() -> None:
    made, pairs = bank(), pairs_of(bank().strengths(ROWS))
    assert pairs is not None
    output = torch.ones(4, TOKENS, 5, dtype=torch.bfloat16)
    x = states("text", 4).bfloat16()
    got = overlaid(made, "k", output, x, pairs)
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
        ({"groups": {"text": ("k", "v")}}, "each layer must be in one group"),
        ({"groups": {"text": ("k", "v"), "x": ("other",)}}, "each group must have `reads`"),
        ({"reads": {g: torch.ones(3, w) for g, w in WIDTHS.items()}}, "another rank"),
    ],
)
def test_an_overlay_that_does_not_hold_is_refused(changed: Any, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        overlay(0, 2, **changed)


def test_overlays_of_one_layer_that_differ_in_width_are_refused() -> None:
    wide = overlay(3, 2, reads={"text": torch.ones(2, 4), "more": torch.ones(2, 8)})
    with pytest.raises(ValueError, match="overlays of k are of different widths"):
        OverlayBank({"a": OWN["a"], "z": wide})


def partial(seed: int, *layers: str) -> Overlay:
    """An overlay of some layers alone, each with a `B` of its own."""
    draw = torch.Generator().manual_seed(seed)
    return Overlay(
        {layer: (layer,) for layer in layers},
        {layer: torch.randn(2, WIDTHS[group_of(layer)], generator=draw) for layer in layers},
        {layer: torch.randn(2, LAYERS[layer], generator=draw) for layer in layers},
    )


def test_overlays_of_different_layers_live_in_one_bank() -> None:
    parts = {"a": OWN["a"], "p": partial(5, "v"), "q": partial(6, "other", "k")}
    made = OverlayBank(parts)
    rows = [carried(("a", 1.0), ("p", 2.0)), carried(("q", 0.5)), carried(("p", 1.0)), carried()]
    for layer in LAYERS:
        x = states(group_of(layer), len(rows))
        got = added(made, layer, rows, x)
        for row, guards in enumerate(rows):
            expected = torch.ones(TOKENS, LAYERS[layer]).double()
            touched = False
            for guard in guards:
                own = parts[guard.name]
                if layer in own.writes:
                    touched = True
                    group = next(g for g, layers in own.groups.items() if layer in layers)
                    delta = own.writes[layer].double().T @ own.reads[group].double()
                    expected += guard.strength * x[row].double() @ delta.T
            torch.testing.assert_close(got[row].double(), expected, atol=1e-4, rtol=1e-5)
            assert touched or torch.equal(got[row], torch.ones(TOKENS, LAYERS[layer]))
    assert made.group("k") != made.group("v"), "one of their guards reads them apart"


@pytest.mark.parametrize(("stride", "kernel"), [(1, 3), (2, 3), (1, 1)])
def test_a_convolution_is_overlaid_like_edited_weights(stride: int, kernel: int) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 6, kernel, stride=stride, padding=kernel // 2)
    reads, writes = torch.randn(3, 4, kernel, kernel), torch.randn(3, 6)
    made = OverlayBank({"a": Overlay({"g": ("c",)}, {"g": reads}, {"c": writes})})
    made.require_fit("c", conv)
    x = torch.randn(2, 4, 8, 8)
    pairs = made.pairs(made.strengths([carried(("a", 0.5)), carried()]))["c"]
    bare = conv(x)
    got = made.added("c", bare, made.coordinates("c", x, pairs, conv), pairs, conv)
    edited = conv.weight + 0.5 * torch.einsum("ro,rihw->oihw", writes, reads)
    expected = F.conv2d(x, edited, conv.bias, stride=stride, padding=kernel // 2)
    torch.testing.assert_close(got[0], expected[0], atol=1e-4, rtol=1e-4)
    assert torch.equal(got[1], bare[1])
