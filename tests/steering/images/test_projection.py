"""Stacked overlays against one row and one guard at a time in float64, and the rows that must
keep their bits."""

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
    generator = torch.Generator().manual_seed(seed)
    whole: dict[str, Any] = {
        "groups": GROUPS,
        "reads": {g: torch.randn(rank, WIDTHS[g], generator=generator) for g in GROUPS},
        "writes": {n: torch.randn(rank, out, generator=generator) for n, out in LAYERS.items()},
    }
    return Overlay(**(whole | changed))


OVERLAYS = {"a": overlay(0, 2), "b": overlay(1, 3), "c": overlay(2, 1)}


def bank() -> OverlayBank:
    return OverlayBank(OVERLAYS)


def carried(*guards: tuple[str, float]) -> list[RowGuard]:
    return [RowGuard(name, 0.0, strength) for name, strength in guards]


ROWS = [carried(("a", 1.0)), carried(), carried(("c", 0.5), ("b", 2.0)), carried(("b", 1.0))]


def states(group: str, rows: int) -> Tensor:
    return torch.randn(rows, TOKENS, WIDTHS[group], generator=torch.Generator().manual_seed(9))


def group_of(layer: str) -> str:
    return next(group for group, layers in GROUPS.items() if layer in layers)


def module(layer: str) -> nn.Linear:
    return nn.Linear(WIDTHS[group_of(layer)], LAYERS[layer])


def overlaid(overlays: OverlayBank, layer: str, output: Tensor, x: Tensor, pairs: Pairs) -> Tensor:
    coordinates = overlays.coordinates(layer, x, pairs, module(layer))
    return overlays.added(layer, output, coordinates, pairs, module(layer))


def added(overlays: OverlayBank, layer: str, rows: list[list[RowGuard]], x: Tensor) -> Tensor:
    pairs = overlays.pairs(overlays.strengths(rows))[layer]
    return overlaid(overlays, layer, torch.ones(len(rows), TOKENS, LAYERS[layer]), x, pairs)


@pytest.mark.parametrize("layer", LAYERS)
def test_each_row_has_the_edits_of_its_guards(layer: str) -> None:
    overlays = bank()
    group = group_of(layer)
    x = states(group, len(ROWS))
    got = added(overlays, layer, ROWS, x)
    for row, guards in enumerate(ROWS):
        delta = torch.zeros(LAYERS[layer], WIDTHS[group]).double()
        for guard in guards:
            member = OVERLAYS[guard.name]
            delta += guard.strength * member.writes[layer].double().T @ member.reads[group].double()
        expected = 1.0 + x[row].double() @ delta.T
        torch.testing.assert_close(got[row].double(), expected, atol=1e-4, rtol=1e-5)
    assert torch.equal(got[1], torch.ones(TOKENS, LAYERS[layer]))


def test_a_row_has_the_same_bits_alone_and_in_a_batch() -> None:
    overlays, x = bank(), states("text", len(ROWS))
    together = added(overlays, "k", ROWS, x)
    for row, guards in enumerate(ROWS):
        if guards:
            assert torch.equal(added(overlays, "k", [guards], x[row : row + 1])[0], together[row])


@pytest.mark.parametrize(("tokens", "width", "rank"), [(8, 384, 1), (32, 16, 1), (32, 384, 1)])
def test_one_pair_has_the_bits_of_several(tokens: int, width: int, rank: int) -> None:
    # at these sizes a CPU sums in another order for a single matrix
    single = Overlay({"g": ("k",)}, {"g": torch.randn(rank, width)}, {"k": torch.randn(rank, 16)})
    overlays = OverlayBank({"a": single})
    x, output = torch.randn(3, tokens, width), torch.zeros(3, tokens, 16)

    def of(rows: slice) -> Tensor:
        pairs = pairs_of(torch.ones(3, 1)[rows])
        assert pairs is not None
        layer = nn.Linear(width, 16)
        coordinates = overlays.coordinates("k", x[rows], pairs, layer)
        return overlays.added("k", output[rows], coordinates, pairs, layer)

    assert torch.equal(of(slice(1, 2)), of(slice(3))[1:2])


def test_a_negative_zero_stays_one() -> None:
    overlays, pairs = bank(), pairs_of(bank().strengths(ROWS))
    assert isinstance(pairs, Pairs)
    output = torch.full((4, TOKENS, 5), -0.0)
    got = overlaid(overlays, "k", output, states("text", 4), pairs)
    assert torch.signbit(got[1]).all()


def test_the_output_keeps_its_precision() -> None:
    overlays, pairs = bank(), pairs_of(bank().strengths(ROWS))
    assert pairs is not None
    output = torch.ones(4, TOKENS, 5, dtype=torch.bfloat16)
    x = states("text", 4).bfloat16()
    got = overlaid(overlays, "k", output, x, pairs)
    assert got.dtype == torch.bfloat16 and got.isfinite().all()


def test_rows_without_guards_have_no_pairs() -> None:
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
def test_an_invalid_overlay_is_refused(changed: Any, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        overlay(0, 2, **changed)


def test_overlays_of_one_layer_that_differ_in_width_are_refused() -> None:
    wide = overlay(3, 2, reads={"text": torch.ones(2, 4), "more": torch.ones(2, 8)})
    with pytest.raises(ValueError, match="overlays of k are of different widths"):
        OverlayBank({"a": OVERLAYS["a"], "z": wide})


def partial(seed: int, *layers: str) -> Overlay:
    """An overlay of some of the layers, each with its own `B`."""
    generator = torch.Generator().manual_seed(seed)
    return Overlay(
        {layer: (layer,) for layer in layers},
        {layer: torch.randn(2, WIDTHS[group_of(layer)], generator=generator) for layer in layers},
        {layer: torch.randn(2, LAYERS[layer], generator=generator) for layer in layers},
    )


def test_overlays_of_different_layers_are_in_one_bank() -> None:
    parts = {"a": OVERLAYS["a"], "p": partial(5, "v"), "q": partial(6, "other", "k")}
    overlays = OverlayBank(parts)
    rows = [carried(("a", 1.0), ("p", 2.0)), carried(("q", 0.5)), carried(("p", 1.0)), carried()]
    for layer in LAYERS:
        x = states(group_of(layer), len(rows))
        got = added(overlays, layer, rows, x)
        for row, guards in enumerate(rows):
            expected = torch.ones(TOKENS, LAYERS[layer]).double()
            touched = False
            for guard in guards:
                member = parts[guard.name]
                if layer in member.writes:
                    touched = True
                    group = next(g for g, layers in member.groups.items() if layer in layers)
                    delta = member.writes[layer].double().T @ member.reads[group].double()
                    expected += guard.strength * x[row].double() @ delta.T
            torch.testing.assert_close(got[row].double(), expected, atol=1e-4, rtol=1e-5)
            assert touched or torch.equal(got[row], torch.ones(TOKENS, LAYERS[layer]))
    assert overlays.group("k") != overlays.group("v"), "a guard has a separate `B` for each"


@pytest.mark.parametrize(("stride", "kernel"), [(1, 3), (2, 3), (1, 1)])
def test_a_convolution_is_overlaid_like_edited_weights(stride: int, kernel: int) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 6, kernel, stride=stride, padding=kernel // 2)
    reads, writes = torch.randn(3, 4, kernel, kernel), torch.randn(3, 6)
    overlays = OverlayBank({"a": Overlay({"g": ("c",)}, {"g": reads}, {"c": writes})})
    overlays.require_fit("c", conv)
    x = torch.randn(2, 4, 8, 8)
    pairs = overlays.pairs(overlays.strengths([carried(("a", 0.5)), carried()]))["c"]
    bare = conv(x)
    got = overlays.added("c", bare, overlays.coordinates("c", x, pairs, conv), pairs, conv)
    edited = conv.weight + 0.5 * torch.einsum("ro,rihw->oihw", writes, reads)
    expected = F.conv2d(x, edited, conv.bias, stride=stride, padding=kernel // 2)
    torch.testing.assert_close(got[0], expected[0], atol=1e-4, rtol=1e-4)
    assert torch.equal(got[1], bare[1])
