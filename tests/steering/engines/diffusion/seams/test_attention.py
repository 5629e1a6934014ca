"""Attention scores, compared with the attention that the layers compute."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from steering.engines.diffusion.families import Family, family_of
from steering.engines.diffusion.forwards import Forwards
from steering.engines.diffusion.seams.attention import AttentionSeam, text_keys
from steering.images.conditioning import Conditioning
from steering.images.latent import AttentionProbe
from tests.steering.engines.diffusion import tiny

READABLE = (
    *("emoji", "flux", "pixart", "stable diffusion", "stable diffusion 3"),
    *("stable diffusion xl", "wan"),
)
PLAIN = "a knife on the table"


@contextmanager
def whole_maps() -> Iterator[list[Tensor]]:
    """The softmax of every attention that runs inside, `[rows, heads, queries, keys]`."""
    kept: list[Tensor] = []
    original = torch.nn.functional.scaled_dot_product_attention

    def kernel(query: Tensor, key: Tensor, value: Tensor, *args: Any, **how: Any) -> Tensor:
        kept.append((query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])).softmax(-1))
        return original(query, key, value, *args, **how)

    torch.nn.functional.scaled_dot_product_attention = kernel  # type: ignore[assignment]
    try:
        yield kept
    finally:
        torch.nn.functional.scaled_dot_product_attention = original


def probes_of(
    family: Family, tokens: slice, others: slice, prompt: str = PLAIN
) -> list[AttentionProbe]:
    """Every head of every layer, for some tokens of a prompt."""
    keys = text_keys(family, family.encode([prompt]), 500.0)
    return [
        AttentionProbe(layer, head, states[tokens, head], states[others, head])
        for layer, states in keys.items()
        for head in range(states.shape[1])
    ]


def inputs(family: Family, rows: int) -> tuple[Tensor, Tensor, Conditioning, Tensor]:
    text = family.encode([PLAIN] * rows)
    return family.noise(range(rows)), torch.full((rows,), 500.0), text, torch.ones(rows)


@pytest.mark.parametrize("name", READABLE)
def test_every_family_has_layers_that_can_be_read(name: str) -> None:
    family = tiny.built(name)
    # Flux has a block of two streams and one of a single one
    expected = [layer for layer, _ in family.cross_attention() if not layer.startswith("single")]
    assert expected and list(family.readable) == expected
    keys = text_keys(family, family.encode([PLAIN]), 500.0)
    assert keys.keys() == family.readable.keys()
    tokens = len(family.content(PLAIN))
    assert {states.shape[0] for states in keys.values()} == {tokens}


@pytest.mark.parametrize("name", ["emoji", "pixart", "stable diffusion", "stable diffusion xl"])
@torch.no_grad()
def test_a_score_is_the_ratio_of_the_layers_own_attention(name: str) -> None:
    family = tiny.built(name)
    tokens_read, others = slice(1, 3), slice(3, 6)
    probes = probes_of(family, tokens_read, others)
    seam = AttentionSeam(family, probes)
    rows = inputs(family, 2)
    seam.request([1] * len(probes), range(len(probes)))
    seam.enter(torch.arange(2))
    with whole_maps() as maps:
        family.predict(*rows)
    scores = seam.scores()
    assert scores.shape == (len(probes), *family.shape[1:])
    tokens = len(family.content(PLAIN))
    crossing = [m for m in maps if m.shape[-1] == tokens]
    assert len(crossing) == len(family.readable)
    layers = list(family.readable)
    for probe, score in zip(probes, scores, strict=True):
        # layers run in another order than they are named in
        ratios = [
            (m[1, probe.head, :, tokens_read].sum(-1) / m[1, probe.head, :, others].sum(-1)).log()
            for m in crossing
            if m.shape[1] > probe.head
        ]
        places = [values for values in ratios if values.numel() in (4, 16, 64)]
        assert any(_same(score, values) for values in places), (layers, probe.layer)


def _same(score: Tensor, values: Tensor) -> bool:
    """Whether a map on the latents' grid is that of a layer's places, interpolated."""
    side = round(math.sqrt(values.numel()))
    fine = torch.nn.functional.interpolate(
        values.view(1, 1, side, side), size=score.shape, mode="bilinear", align_corners=False
    )
    return torch.allclose(score, fine[0, 0], atol=1e-4)


@torch.no_grad()
def test_an_image_whose_side_is_no_power_of_two_is_read() -> None:
    pipeline = tiny.built("stable diffusion").pipeline
    family = family_of(pipeline, height=18, width=10)
    assert family.shape[1:] == (9, 5)
    seam = AttentionSeam(family, probes_of(family, slice(1, 3), slice(3, 6)))
    seam.request([0] * 2, [0, len(seam._index) - 1])
    seam.enter(torch.arange(1))
    family.predict(*inputs(family, 1))
    assert seam.scores().shape == (2, 9, 5)
    seam.remove()


@torch.no_grad()
def test_joint_attention_is_read_without_the_images_own_keys() -> None:
    family = tiny.built("stable diffusion 3")
    tokens_read, others = slice(1, 3), slice(3, 6)
    probes = probes_of(family, tokens_read, others)
    seam = AttentionSeam(family, probes)
    seam.request([0] * len(probes), range(len(probes)))
    seam.enter(torch.arange(1))
    latents, times, text, guidance = inputs(family, 1)
    with whole_maps() as maps:
        family.predict(latents, times, text, guidance)
    # the tokens of the image come before those of the text
    places = (family.shape[1] // 2) * (family.shape[2] // 2)
    first = maps[0][0, :, :places, places:]
    for probe, score in list(zip(probes, seam.scores(), strict=True))[:2]:
        weights = first[probe.head]
        ratio = weights[:, tokens_read].sum(-1) / weights[:, others].sum(-1)
        assert _same(score, ratio.log())


@pytest.mark.parametrize("name", ["stable diffusion", "stable diffusion 3", "wan"])
@torch.no_grad()
def test_fused_projections_give_the_same(name: str) -> None:
    family = tiny.built(name)
    plain = _scores(family, probes_of(family, slice(0, 2), slice(2, 4)))
    family.denoiser.fuse_qkv_projections()
    assert any(
        hasattr(layer, "to_kv") or hasattr(layer, "to_qkv") for layer in family.readable.values()
    )
    fused = _scores(family, probes_of(family, slice(0, 2), slice(2, 4)))
    torch.testing.assert_close(fused, plain, rtol=1e-4, atol=1e-4)


def _scores(family: Family, probes: list[AttentionProbe]) -> Tensor:
    seam = AttentionSeam(family, probes)
    seam.request([0] * len(probes), range(len(probes)))
    seam.enter(torch.arange(1))
    family.predict(*inputs(family, 1))
    seam.remove()
    return seam.scores()


@pytest.mark.parametrize("size", [2, 3, None])
@torch.no_grad()
def test_rows_are_read_in_forwards_of_any_size(size: int | None) -> None:
    family = tiny.built("emoji")
    probes = probes_of(family, slice(0, 2), slice(2, 4))[:2]
    seam = AttentionSeam(family, probes)
    rows = inputs(family, 5)
    forwards = Forwards(family, size, [seam])
    seam.request([4, 0, 4], [0, 1, 1])
    forwards(*rows)
    scores = seam.scores()
    for row, probe, got in zip([4, 0, 4], [0, 1, 1], scores, strict=True):
        seam.request([0], [probe])
        one = torch.tensor([row])
        Forwards(family, 1, [seam])(rows[0][one], rows[1][one], rows[2].select(one), rows[3][one])
        torch.testing.assert_close(got, seam.scores()[0], rtol=1e-4, atol=1e-4)


class Largest(TorchDispatchMode):
    """Records the size of the largest tensor inside the context."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else [made]:
            if isinstance(tensor, Tensor):
                self.numbers = max(self.numbers, tensor.numel())
        return made


@torch.no_grad()
def test_no_map_of_all_tokens_is_ever_made() -> None:
    family = tiny.built("emoji")
    (probe, *_) = probes_of(family, slice(0, 1), slice(1, 2))
    seam = AttentionSeam(family, [probe])
    layer = seam._layers[0]
    places, heads, width, tokens = 4096, layer.projection.heads, probe.keys.shape[1], 77
    output = torch.randn(2, places, heads * width)
    with Largest() as made:
        layer.scores(output, [1], [0])
    assert made.numbers == output.numel()  # the projection's output, by head
    assert made.numbers < places * heads * tokens


@torch.no_grad()
def test_without_requests_the_hooks_do_nothing() -> None:
    family = tiny.built("emoji")
    bare = family.predict(*inputs(family, 2))
    seam = AttentionSeam(family, probes_of(family, slice(0, 1), slice(1, 2)))
    seam.enter(torch.arange(2))
    assert torch.equal(family.predict(*inputs(family, 2)), bare)
    assert len(seam.scores()) == 0
    seam.request([0], [0])  # requested, but the forward does not announce its rows
    family.predict(*inputs(family, 2))
    with pytest.raises(RuntimeError, match="has not been run"):
        seam.scores()
    seam.remove()
    assert not any(module._forward_hooks for module in family.denoiser.modules())


def test_an_unknown_layer_or_head_is_refused_by_name() -> None:
    family = tiny.built("flux")
    keys = torch.zeros(1, 8)
    with pytest.raises(ValueError, match="no layer 'single_transformer_blocks.0.attn'"):
        AttentionSeam(family, [AttentionProbe("single_transformer_blocks.0.attn", 0, keys, keys)])
    with pytest.raises(ValueError, match="has 2 heads, none of number 2"):
        AttentionSeam(family, [AttentionProbe("transformer_blocks.0.attn", 2, keys, keys)])


def test_a_processor_that_hides_its_keys_is_refused_by_name() -> None:
    family = tiny.built("stable diffusion")
    name, module = next(iter(family.readable.items()))

    class Silent:
        def __call__(self, attn: Any, hidden_states: Tensor, **_: Any) -> Tensor:
            return hidden_states

    (probe, *_) = probes_of(family, slice(0, 1), slice(1, 2))
    module.set_processor(Silent())  # type: ignore[operator]
    with pytest.raises(ValueError, match=f"{name} hides its keys"):
        text_keys(family, family.encode([PLAIN]), 500.0)
    with pytest.raises(ValueError, match=f"{name} hides its queries"):
        AttentionSeam(family, [probe])
    assert not any(module._forward_hooks for module in family.denoiser.modules())


@pytest.mark.parametrize("name", READABLE)
def test_content_leaves_out_special_tokens_and_padding(name: str) -> None:
    family = tiny.built(name)
    assert int(family.content("").sum()) == 0
    one, two = family.content("knife"), family.content("a knife")
    encoders = {"stable diffusion 3": 2}.get(name, 1)
    assert int(one.sum()) == encoders and int(two.sum()) == 2 * encoders
