"""Overlays inside the denoiser, compared with edited weights; bare rows beside them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from steering.engines.diffusion.engine import DiffusionEngine, ImageStart
from steering.engines.diffusion.families import Family
from steering.engines.diffusion.seams.projections import OverlaySeam, recorded, text_projections
from steering.engines.errors import Unfollowed
from steering.hidden.rows import RowGuard
from steering.images.projection import OverlayBank
from tests.steering.engines.diffusion import tiny
from tests.steering.engines.diffusion.guards import ShiftGuards, carried
from tests.steering.engines.diffusion.overlays import OverlaidGuards, edit, random_overlay
from tests.steering.engines.diffusion.running import (
    STARTS,
    Generated,
    assert_bare,
    new_engine,
    run,
    stacked,
)
from tests.steering.engines.diffusion.tiny import shared

LAYERS = {
    "emoji": 14,
    "flux": 2,
    "flux, not distilled": 2,
    "pixart": 4,
    "stable diffusion": 8,
    "stable diffusion 3": 4,
    "stable diffusion 3 without t5": 4,
    "stable diffusion xl": 8,
    "wan": 4,
}


@contextmanager
def overlaid(family: Family, **options: Any) -> Iterator[DiffusionEngine]:
    """An engine with the guards `a` and `b`."""
    guards = OverlaidGuards(
        [random_overlay(family, 0), random_overlay(family, 1, rank=3)], "a", "b"
    )
    engine = new_engine(family, guards, **options)
    yield engine
    engine.close()


def carrying(index: int, *guards: RowGuard) -> ImageStart:
    return replace(STARTS[index], guards=guards)


def hooks(family: Family) -> int:
    return sum(len(module._forward_hooks) for module in family.denoiser.modules())


@pytest.mark.parametrize("name", tiny.PIPELINES)
def test_an_overlaid_row_is_that_of_edited_weights(name: str) -> None:
    family, edited = shared(name), tiny.built(name)
    before = tiny.weights_hash(family.pipeline)
    starts = [carrying(0, carried("a", strength=0.5)), carrying(2, carried("a", strength=0.5))]
    with overlaid(family) as engine:
        got = run(engine, starts)
    edit(edited, random_overlay(family, 0), 0.5)
    expected = run(DiffusionEngine(edited, capacity=2), starts_bare(starts))
    bare = run(DiffusionEngine(family, capacity=2), starts_bare(starts))
    for row, (latents, image) in got.items():
        whole, pixels = expected[row]
        close = 2e-4 * whole.abs().max()
        assert (latents - whole).abs().max() <= close
        assert np.abs(image.astype(int) - pixels).max() <= 1
        assert (bare[row][0] - whole).abs().max() > 10 * close, "the edit has no effect"
    assert tiny.weights_hash(family.pipeline) == before and hooks(family) == 0


def starts_bare(starts: Sequence[ImageStart]) -> list[ImageStart]:
    return [replace(start, guards=()) for start in starts]


def test_several_overlays_of_a_row_add_up() -> None:
    family, edited = shared("emoji"), tiny.built("emoji")
    start = carrying(0, carried("b", strength=0.25), carried("a", strength=0.5))
    with overlaid(family) as engine:
        latents = run(engine, [start])[0][0]
    edit(edited, random_overlay(family, 0), 0.5)
    edit(edited, random_overlay(family, 1, rank=3), 0.25)
    expected = run(DiffusionEngine(edited, capacity=1), [STARTS[0]])[0][0]
    assert (latents - expected).abs().max() <= 2e-4 * expected.abs().max()


MIXED = (
    carrying(0, carried("a")),
    carrying(1),
    carrying(2, carried("b"), carried("a", strength=0.5)),
    carrying(3, carried("a", fires=False), carried("b", acts=False)),
    carrying(4, carried("b", strength=2.0)),
)
SILENT = (1, 3)


@pytest.mark.parametrize("name", ["emoji", "stable diffusion 3", "flux", "wan"])
@pytest.mark.parametrize("joining", [1, 9])
def test_overlaid_rows_have_the_same_bits_alone_and_in_a_batch(name: str, joining: int) -> None:
    family = shared(name)
    with overlaid(family) as engine:
        alone = {index: run(engine, [start])[0] for index, start in enumerate(MIXED)}
        got = run(engine, MIXED, joining=joining)
    assert_bare({index: got[index] for index in SILENT}, name)
    assert_same(got, alone)
    for index in {*range(len(MIXED))} - {*SILENT}:
        assert not np.array_equal(got[index][1], run_bare(name, index)), index


def run_bare(name: str, index: int) -> Any:
    return run(DiffusionEngine(shared(name), capacity=1), [STARTS[index]])[0][1]


def assert_same(got: Generated, expected: Generated) -> None:
    for index, (latents, image) in got.items():
        assert torch.equal(latents, expected[index][0]), index
        assert np.array_equal(image, expected[index][1]), index


def test_dropped_rows_leave_no_overlay_behind() -> None:
    family = shared("emoji")
    with overlaid(family) as engine:
        alone = {index: run(engine, [start])[0] for index, start in enumerate(MIXED)}
        got = run(engine, MIXED, before=lambda step, live: [0, 2] if step == 1 else [])
    assert_same(got, {index: alone[index] for index in got})
    assert {*got} == {1, 3, 4}


def test_in_one_forward_silent_rows_keep_their_bits() -> None:
    family = shared("emoji")
    with overlaid(family, forward=None) as engine:
        got = run(engine, MIXED)
    bare = run(DiffusionEngine(family, capacity=5, forward=None), STARTS)
    for index in SILENT:
        assert torch.equal(got[index][0], bare[index][0])


def test_a_batch_without_overlays_does_no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> Any:
        raise AssertionError("an overlay was computed")

    family = shared("emoji")
    with overlaid(family) as engine:
        monkeypatch.setattr(OverlayBank, "coordinates", fail)
        monkeypatch.setattr(OverlayBank, "added", fail)
        assert_bare(run(engine, [*MIXED[:0], carrying(0), carrying(1, carried("a", fires=False))]))


def test_states_that_layers_share_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    family, groups = shared("emoji"), []
    coordinates = OverlayBank.coordinates

    def counted(self: OverlayBank, layer: str, *more: Any) -> Any:
        groups.append(self.group(layer))
        return coordinates(self, layer, *more)

    monkeypatch.setattr(OverlayBank, "coordinates", counted)
    with overlaid(family) as engine:
        engine.start([replace(MIXED[0], guidance=1.0)])
        engine.step()
    assert len(groups) == len({*groups}) == LAYERS["emoji"] // 2


def test_other_overlays_are_used_from_then_on() -> None:
    family = shared("emoji")
    with overlaid(family) as engine:
        first = run(engine, [MIXED[0]])[0][1]
        engine.use(stacked(OverlaidGuards([random_overlay(family, 5)], "a")))
        assert not np.array_equal(run(engine, [MIXED[0]])[0][1], first)
        engine.use(stacked(ShiftGuards("a")))
        assert hooks(family) == 0
        assert_bare(run(engine, [replace(MIXED[0], guards=())]))


# -- layers that cannot be overlaid -------------------------------------------------------------


@pytest.mark.parametrize("name", tiny.PIPELINES)
def test_the_projections_of_the_text_are_found(name: str) -> None:
    family = shared(name)
    layers = text_projections(family.cross_attention())
    named = dict(family.denoiser.named_modules())
    assert len(layers) == LAYERS[name]
    assert all(named[path] is layer for path, layer in layers.items())


@pytest.mark.parametrize("name", tiny.PIPELINES)
def test_the_projections_of_the_text_read_the_encoded_prompts(name: str) -> None:
    family = shared(name)
    engine = DiffusionEngine(family, capacity=2, forward=None)
    engine.start([replace(start, guidance=1.0) for start in STARTS[:2]])
    with recorded(family.cross_attention()) as inputs:
        engine.step()
    masks = family.text_masks(family.encode([start.prompt for start in STARTS[:2]]))
    tokens = sum(mask.shape[1] for mask in masks)
    assert len(inputs) == LAYERS[name]
    assert {tuple(tensors[0].shape[:2]) for tensors in inputs.values()} == {(2, tokens)}
    assert all(len(mask) == 2 and mask.dtype == torch.bool for mask in masks)
    # five words and two marks at most
    assert 0 < int(torch.cat(masks, 1)[0].sum()) <= 2 * tiny.T5_TOKENS
    assert not any(module._forward_pre_hooks for module in family.denoiser.modules())


def install(family: Family) -> None:
    OverlaySeam(family.denoiser).install({"a": random_overlay(shared("stable diffusion"), 0)})


@pytest.mark.parametrize("name", ["emoji", "stable diffusion 3", "flux", "pixart", "wan"])
def test_fused_projections_are_refused_by_name(name: str) -> None:
    family = tiny.built(name)
    path = family.cross_attention()[0][0]
    if name == "wan":
        family.denoiser.blocks[0].attn2.fuse_projections()
    else:
        family.denoiser.fuse_qkv_projections()
    with pytest.raises(ValueError, match=f"{path} has fused projections"):
        text_projections(family.cross_attention())


class Adapted(nn.Module):
    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.base_layer = layer


class Quantised(nn.Linear):
    pass


def adapted(layer: nn.Linear) -> nn.Module:
    return Adapted(layer)


def subclassed(layer: nn.Linear) -> nn.Module:
    return Quantised(layer.in_features, layer.out_features, bias=False)


@pytest.mark.parametrize(("change", "kind"), [(adapted, "Adapted"), (subclassed, "Quantised")])
def test_layers_that_are_not_plain_are_refused_by_name(change: Any, kind: str) -> None:
    family = tiny.built("stable diffusion")
    path, module = family.cross_attention()[1]
    module.to_v = change(module.to_v)
    with pytest.raises(ValueError, match=rf"{path}\.to_v is a {kind}, not a plain linear layer"):
        install(family)
    assert hooks(family) == 0


def test_quantised_weights_are_refused_by_name() -> None:
    family = tiny.built("stable diffusion")
    path, module = family.cross_attention()[0]
    weight = module.to_k.weight.data.to(torch.int8)
    module.to_k.weight = nn.Parameter(weight, requires_grad=False)
    with pytest.raises(ValueError, match=rf"{path}\.to_k has quantised weights"):
        install(family)


def test_overlays_of_another_model_are_refused() -> None:
    with pytest.raises(ValueError, match=r"is of other widths than the layer"):
        install(shared("emoji"))
    with pytest.raises(ValueError, match=r"to_k is of other widths"):
        install(shared("stable diffusion xl"))
    assert hooks(shared("emoji")) == hooks(shared("stable diffusion xl")) == 0


def test_a_forward_that_bypasses_a_hook_is_an_error() -> None:
    family = tiny.built("stable diffusion")
    with overlaid(family) as engine:
        path, module = family.cross_attention()[0]
        engine.start([carrying(0, carried("a"))])
        engine.step()
        # as adapters do that are loaded while the engine runs
        module.to_k = subclassed(module.to_k)
        with pytest.raises(Unfollowed, match=rf"{path}\.to_k was not run"):
            engine.step()


def test_a_forward_of_other_rows_is_an_error() -> None:
    family = shared("stable diffusion")
    seam = OverlaySeam(family.denoiser)
    seam.install({"a": random_overlay(family, 0)})
    try:
        seam.carry([[carried("a")]] * 3, torch.arange(3))
        seam.enter(torch.arange(3))
        layer = next(iter(text_projections(family.cross_attention()).values()))
        with pytest.raises(Unfollowed, match="does not hold the rows"):
            layer(torch.zeros(2, 4, layer.in_features))
        seam.leave()
        layer(torch.zeros(2, 4, layer.in_features))
    finally:
        seam.remove()
