"""Every family: its streams, its masks, what it cuts off, and the stock pipeline's own images."""

from __future__ import annotations

from functools import cache
from inspect import signature
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from steering.engines.diffusion.engine import DiffusionEngine, ImageStart
from steering.engines.diffusion.families import Family, family_of
from tests.steering.engines.diffusion import tiny
from tests.steering.engines.diffusion.guards import same

CLIP, T5 = tiny.CLIP_TOKENS, tiny.T5_TOKENS
STREAMS = {
    "emoji": {"text": (CLIP, 32)},
    "flux": {"t5": (T5, 24), "pooled": (1, 16)},
    "flux, not distilled": {"t5": (T5, 24), "pooled": (1, 16)},
    "pixart": {"t5": (T5, 24)},
    "stable diffusion": {"text": (CLIP, 16)},
    "stable diffusion 3": {
        "clip_l": (CLIP, 16),
        "clip_g": (CLIP, 24),
        "t5": (T5, 48),
        "pooled_l": (1, 16),
        "pooled_g": (1, 20),
    },
    "stable diffusion 3 without t5": {
        "clip_l": (CLIP, 16),
        "clip_g": (CLIP, 24),
        "pooled_l": (1, 16),
        "pooled_g": (1, 20),
    },
    "stable diffusion xl": {"clip_l": (CLIP, 16), "clip_g": (CLIP, 24), "pooled": (1, 20)},
    "wan": {"t5": (T5, 24)},
}
ATTENTION = {
    "emoji": 7,
    "flux": 2,
    "flux, not distilled": 2,
    "pixart": 2,
    "stable diffusion": 4,
    "stable diffusion 3": 2,
    "stable diffusion 3 without t5": 2,
    "stable diffusion xl": 4,
    "wan": 2,
}
CHANNELS = {"emoji": 8, "flux": 2, "flux, not distilled": 2}
PROMPTS = ["a knife on the table", "cat"]


@cache
def built(name: str) -> Family:
    return tiny.built(name)


@pytest.fixture(params=tiny.PIPELINES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def stock(name: str, prompts: list[str], seeds: list[int], **more: Any) -> Any:
    """The pipeline's own call, at the family's size."""
    family = built(name)
    call: dict[str, Any] = {
        "generator": [torch.Generator().manual_seed(seed) for seed in seeds],
        "height": family.height,
        "width": family.width,
        "output_type": "np",
    }
    known = signature(type(family.pipeline).__call__).parameters
    optional = {"max_sequence_length": T5, "num_frames": 5, "use_resolution_binning": False}
    call |= {key: value for key, value in optional.items() if key in known}
    with torch.no_grad():
        output = family.pipeline(prompts, **(call | more))
    return output.frames if hasattr(output, "frames") else output.images


def guided(name: str, scale: float, negative: list[str] | None) -> dict[str, Any]:
    """Arguments of the stock call for the engine's `guidance` and `negative_prompt`."""
    if name == "flux, not distilled":
        return {"true_cfg_scale": scale, "negative_prompt": negative or ["", ""]}
    if name == "flux" or negative is None:
        return {"guidance_scale": scale}
    return {"guidance_scale": scale, "negative_prompt": negative}


def drawn(engine: DiffusionEngine, starts: list[ImageStart]) -> Any:
    engine.start(starts)
    while not (done := engine.step()):
        pass
    assert done == list(range(len(starts)))
    images = engine.images(done)
    engine.drop(done)
    return images


@pytest.mark.parametrize("negative", [None, ["a banana", "red"]])
def test_the_engine_draws_what_the_stock_pipeline_draws(
    name: str, negative: list[str] | None
) -> None:
    family, seeds = built(name), [3, 4]
    before = tiny.weights_hash(family.pipeline)
    starts = [
        ImageStart(prompt, (negative or ["", ""])[i], seeds[i], steps=4, guidance=3.0)
        for i, prompt in enumerate(PROMPTS)
    ]
    ours = drawn(DiffusionEngine(family, capacity=2), starts)
    options = guided(name, 3.0, negative)
    theirs = (stock(name, PROMPTS, seeds, num_inference_steps=4, **options) * 255).round()
    assert ours.dtype == np.uint8 and ours.shape == theirs.shape
    assert ours.std() > 1
    away = np.abs(ours.astype(float) - theirs)
    # sums are taken in another order: a value may fall on the other side of a half
    assert away.max() <= 1 and (away > 0).mean() < 0.01
    assert tiny.weights_hash(family.pipeline) == before


def test_without_guidance_too(name: str) -> None:
    family = built(name)
    start = ImageStart("a red dog", seed=5, steps=3, guidance=1.0)
    ours = drawn(DiffusionEngine(family, capacity=1), [start])
    options = {"true_cfg_scale": 1.0} if name == "flux, not distilled" else {"guidance_scale": 1.0}
    theirs = (stock(name, ["a red dog"], [5], num_inference_steps=3, **options) * 255).round()
    assert np.abs(ours.astype(float) - theirs).max() <= 1


def test_streams_and_masks(name: str) -> None:
    text = built(name).encode(PROMPTS)
    assert {n: tuple(s.shape[1:]) for n, s in text.states.items()} == STREAMS[name]
    for stream, (tokens, _) in STREAMS[name].items():
        mask = text.masks[stream]
        assert mask.dtype == torch.bool and mask.shape == (2, tokens)
        # five words and a mark before and behind, where there is one
        marks = 1 if stream == "t5" else 2
        real = [1, 1] if tokens == 1 else [5 + marks, 1 + marks]
        assert mask.sum(1).tolist() == real
        assert not mask.int().diff(dim=1).gt(0).any()


def test_streams_go_together_as_they_were(name: str) -> None:
    family = built(name)
    encoded = family._encode_prompt(PROMPTS)
    parts = [encoded[part] for part in family.parts]
    text = family.take_apart(parts, {reader.argument: PROMPTS for reader in family.readers})
    assert same(text, family.encode(PROMPTS))
    made = family.put_together(text)
    assert all(torch.equal(new, old) for new, old in zip(made, parts, strict=True))
    if name == "pixart":
        return  # its mask comes with the embeddings
    unknown = family.take_apart(parts, None)
    assert all(bool(mask.all()) for mask in unknown.masks.values())


def test_every_stream_reaches_the_prediction(name: str) -> None:
    family = built(name)
    text = family.encode(["a knife"])
    latents, time = family.noise([0]), torch.tensor([500.0])
    guidance = torch.tensor([3.0])
    with torch.no_grad():
        bare = family.predict(latents, time, text, guidance)
        for stream, state in text.states.items():
            other = text.with_states({stream: state + 1.0})
            assert not torch.equal(family.predict(latents, time, other, guidance), bare), stream


def test_guidance_is_an_input_of_distilled_networks_alone(name: str) -> None:
    family = built(name)
    latents, text = family.noise([0]), family.encode(["a knife"])
    with torch.no_grad():
        one, other = (
            family.predict(latents, torch.tensor([500.0]), text, torch.tensor([scale]))
            for scale in (2.0, 5.0)
        )
    assert torch.equal(one, other) == (not family.distilled)
    assert family.distilled == (name == "flux")


def test_what_is_cut_off_comes_in_windows(name: str) -> None:
    family = built(name)
    short, long = "a red knife", "the cat and the dog in the red table of a banana on the knife"
    fits, cut = family.overflow([short, long])
    assert fits is None and cut is not None
    marks = 1 if list(STREAMS[name]) == ["t5"] else 2
    room = min(reader.tokens for reader in family.readers) - marks
    words = long.split()
    step = room - room // 4
    starts = range(step, len(words) - room + step, step)
    windows = [" ".join(words[at : at + room]) for at in starts]
    assert windows[-1].endswith("knife")
    extra = windows if name not in {"flux", "flux, not distilled", "stable diffusion 3"} else None
    if extra is None:
        # T5 cuts it too, later: what that leaves out comes behind
        t5 = family.readers[-1].windows(long)
        extra = list(dict.fromkeys([*windows, *t5]))
        assert t5 and t5[-1].endswith("knife")
    assert same(cut, family.encode(extra))


def test_each_argument_may_have_a_text_of_its_own(name: str) -> None:
    family = built(name)
    long = "the cat and the dog in the red table of a banana on the knife"
    texts = {reader.argument: ["cat", "dog"] for reader in family.readers}
    last = family.readers[-1].argument
    texts[last] = ["cat", long]
    fits, cut = family.overflow_of(texts)
    (expected,) = family.overflow([long])
    assert fits is None and cut is not None and expected is not None
    assert same(cut, expected)


def test_cross_attention_is_found_by_name(name: str) -> None:
    family = built(name)
    found = family.cross_attention()
    assert len(found) == ATTENTION[name]
    modules = dict(family.denoiser.named_modules())
    assert all(modules[path] is module for path, module in found)


def test_encoders_go_by_the_pipelines_names(name: str) -> None:
    encoders = built(name).encoders
    count = {"flux": 2, "flux, not distilled": 2, "stable diffusion xl": 2}.get(name, 1)
    count = {"stable diffusion 3": 3, "stable diffusion 3 without t5": 2}.get(name, count)
    names = ["text_encoder", "text_encoder_2", "text_encoder_3"][:count]
    assert list(encoders) == names
    assert all(isinstance(encoder, nn.Module) for encoder in encoders.values())


def test_noise_is_a_rows_own(name: str) -> None:
    family = built(name)
    both = family.noise([7, 8])
    assert torch.equal(both[1:], family.noise([8])) and not torch.equal(both[0], both[1])
    assert both.dtype == torch.float32


def test_latents_come_unpacked_in_their_channels_and_places(name: str) -> None:
    family = built(name)
    noise = family.noise([7, 8])
    whole = family.unpacked(noise)
    assert whole.shape == (2, *family.shape)
    assert family.channels == whole.shape[1] == CHANNELS.get(name, 4)
    assert torch.equal(family.packed(whole), noise)


@pytest.mark.parametrize(("height", "width"), [(16, 16), (8, 32), (32, 8)])
def test_unpacking_is_packing_the_other_way_round(height: int, width: int) -> None:
    family = family_of(built("flux").pipeline, height=height, width=width)
    whole = torch.arange(2.0 * 2 * height * width / 4).view(2, *family.shape)
    packed = family.packed(whole)
    assert packed.ndim == 3 and torch.equal(family.unpacked(packed), whole)


def test_the_autoencoder_is_the_pipelines_own(name: str) -> None:
    family = built(name)
    assert family.autoencoder is family.pipeline.vae and isinstance(family.autoencoder, nn.Module)


def test_an_empty_negative_prompt_is_the_pipelines_own() -> None:
    family = built("stable diffusion xl")
    text = family.unconditional(["", "a banana"])
    assert all(not state[0].any() for state in text.states.values())
    other = family.encode(["", "a banana"])
    assert same(text.select(slice(1, 2)), other.select(slice(1, 2)))
    plain = built("stable diffusion")
    assert same(plain.unconditional([""]), plain.encode([""]))


def test_textual_inversion_is_part_of_the_masks_and_windows() -> None:
    family = tiny.built("stable diffusion")
    pipeline = family.pipeline
    for token in ("<it>", "<it>_1", "<it>_2"):
        pipeline.tokenizer.add_tokens(token)
    pipeline.text_encoder.resize_token_embeddings(len(pipeline.tokenizer))
    text = family.encode(["a <it>"])
    assert text.masks["text"].sum().item() == 1 + 1 + 3 + 1
    (cut,) = family.overflow(["a <it> <it> <it>"])
    assert cut is not None


def test_only_known_pipelines_are_taken() -> None:
    class Other:
        pass

    with pytest.raises(ValueError, match=r"Other is not supported: there is FluxPipeline, Pix"):
        family_of(Other())
    kind = type(built("emoji").pipeline)
    # a subclass may encode its prompts in another way
    derived = type("MyPipeline", (kind,), {})(**built("emoji").pipeline.components)
    with pytest.raises(ValueError, match="MyPipeline is not supported"):
        family_of(derived)


def test_a_pipeline_without_an_encoder_is_refused() -> None:
    pipeline = tiny.stable_diffusion_3()
    pipeline.text_encoder_2 = None
    with pytest.raises(ValueError, match="without a text_encoder_2"):
        family_of(pipeline)


def test_sizes_that_do_not_go_are_refused(name: str) -> None:
    pipeline = built(name).pipeline
    with pytest.raises(ValueError, match="multiples of"):
        family_of(pipeline, height=17, width=16)
    if name == "wan":
        with pytest.raises(ValueError, match="frames must be one more than a multiple of 4"):
            family_of(pipeline, height=32, width=32, frames=6)
    else:
        with pytest.raises(ValueError, match="makes images"):
            family_of(pipeline, frames=5)


def test_defaults_are_the_pipelines_own() -> None:
    assert built("stable diffusion xl").defaults == (50, 5.0)
    assert built("flux").defaults == (28, 3.5)
    # there `guidance_scale` does nothing
    assert built("flux, not distilled").defaults == (28, 1.0)
    wan = family_of(built("wan").pipeline)
    assert isinstance(wan, type(built("wan")))
    assert (wan.width, wan.height, wan.shape) == (832, 480, (4, 21, 60, 104))
    emoji = built("emoji")
    assert (emoji.width, emoji.height) == (32, 32)


def test_what_the_engine_cannot_run_is_said() -> None:
    two_stage = tiny.wan()
    two_stage.register_to_config(boundary_ratio=0.5)
    family = family_of(two_stage, height=32, width=32, frames=5)
    with pytest.raises(ValueError, match="WanPipeline cannot be run: Wan 2.2"):
        DiffusionEngine(family, capacity=1)
    halved = tiny.stable_diffusion_xl()
    halved.vae.half()
    with pytest.raises(ValueError, match="autoencoder overflows in float16"):
        DiffusionEngine(family_of(halved, height=16, width=16), capacity=1)
    distilled = tiny.stable_diffusion()
    distilled.unet = tiny._unet(4, 8, 16, time_cond_proj_dim=8)
    with pytest.raises(ValueError, match="distilled"):
        DiffusionEngine(family_of(distilled, height=16, width=16), capacity=1)


def test_the_safety_checker_keeps_its_say() -> None:
    family = tiny.built("stable diffusion")

    class Checker(nn.Module):
        def forward(self, images: torch.Tensor, clip_input: torch.Tensor) -> Any:
            return torch.zeros_like(images), [True] * len(images)

    def features(images: Any, return_tensors: str) -> Any:
        class Values(dict[str, torch.Tensor]):
            pixel_values = torch.zeros(len(images), 3, 4, 4)

            def to(self, _device: Any) -> Any:
                return self

        return Values()

    family.pipeline.safety_checker, family.pipeline.feature_extractor = Checker(), features
    start = ImageStart("cat", seed=1, steps=2, guidance=1.0)
    assert not drawn(DiffusionEngine(family, capacity=1), [start]).any()


IMAGES = [name for name in tiny.PIPELINES if name != "wan"]


def decoded(family: Family, latents: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    """What the autoencoder is given to decode."""
    seen: list[torch.Tensor] = []
    vae: Any = family.autoencoder
    decode = vae.decode

    def spied(z: torch.Tensor, *args: Any, **more: Any) -> Any:
        seen.append(z)
        return decode(z, *args, **more)

    with torch.no_grad(), monkeypatch.context() as patch:
        patch.setattr(vae, "decode", spied)
        family.decode(family.packed(latents))
    return seen[0]


@pytest.mark.parametrize("measured", [False, True])
@pytest.mark.parametrize("name", IMAGES)
def test_a_image_is_encoded_as_it_is_decoded(
    name: str, measured: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = tiny.built(name)
    vae: Any = family.autoencoder
    if measured:
        if name != "stable diffusion xl":
            return
        vae.register_to_config(latents_mean=[0.1, -0.2, 0.3, 0.0], latents_std=[1.0, 2.0, 0.5, 3.0])
    pixels = torch.rand(2, family.height, family.width, 3)
    latents = family.encode_image(pixels)
    assert latents.shape == (2, *family.shape) and latents.dtype == torch.float32
    with torch.no_grad():
        encoded = vae.encode(pixels.permute(0, 3, 1, 2) * 2 - 1)
    told = encoded.latents if name == "emoji" else encoded.latent_dist.mode()
    torch.testing.assert_close(decoded(family, latents, monkeypatch), told, rtol=1e-4, atol=1e-4)
    assert torch.equal(latents, family.encode_image(pixels)), "nothing is drawn"


def test_images_of_another_size_and_videos_are_refused() -> None:
    for shape in ((16, 16, 3), (1, 16, 12, 3), (1, 3, 16, 16)):
        with pytest.raises(ValueError, match="images must be"):
            built("stable diffusion").encode_image(torch.zeros(shape))
    with pytest.raises(ValueError, match="makes videos"):
        built("wan").encode_image(torch.zeros(1, 32, 32, 3))
