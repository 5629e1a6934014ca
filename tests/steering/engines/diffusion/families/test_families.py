"""Every family: its streams, masks, windows, layers, sizes and defaults."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from steering.engines.diffusion.families import family_of
from tests.steering.engines.diffusion import tiny
from tests.steering.engines.diffusion.guards import same
from tests.steering.engines.diffusion.tiny import shared

CLIP = tiny.CLIP_TOKENS


T5 = tiny.T5_TOKENS


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


PROMPTS = ["a knife on the table", "cat"]


def test_streams_and_masks(name: str) -> None:
    text = shared(name).encode(PROMPTS)
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
    family = shared(name)
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
    family = shared(name)
    text = family.encode(["a knife"])
    latents, time = family.noise([0]), torch.tensor([500.0])
    guidance = torch.tensor([3.0])
    with torch.no_grad():
        bare = family.predict(latents, time, text, guidance)
        for stream, state in text.states.items():
            other = text.with_states({stream: state + 1.0})
            assert not torch.equal(family.predict(latents, time, other, guidance), bare), stream


def test_guidance_is_an_input_of_distilled_networks_alone(name: str) -> None:
    family = shared(name)
    latents, text = family.noise([0]), family.encode(["a knife"])
    with torch.no_grad():
        one, other = (
            family.predict(latents, torch.tensor([500.0]), text, torch.tensor([scale]))
            for scale in (2.0, 5.0)
        )
    assert torch.equal(one, other) == (not family.distilled)
    assert family.distilled == (name == "flux")


def test_text_past_the_encoders_length_comes_in_windows(name: str) -> None:
    family = shared(name)
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
        # T5 has a longer window: the text past it comes after the others
        t5 = family.readers[-1].windows(long)
        extra = list(dict.fromkeys([*windows, *t5]))
        assert t5 and t5[-1].endswith("knife")
    assert same(cut, family.encode(extra))


def test_each_argument_may_have_another_text(name: str) -> None:
    family = shared(name)
    long = "the cat and the dog in the red table of a banana on the knife"
    texts = {reader.argument: ["cat", "dog"] for reader in family.readers}
    last = family.readers[-1].argument
    texts[last] = ["cat", long]
    fits, cut = family.overflow_of(texts)
    (expected,) = family.overflow([long])
    assert fits is None and cut is not None and expected is not None
    assert same(cut, expected)


def test_cross_attention_is_found_by_name(name: str) -> None:
    family = shared(name)
    attention = family.cross_attention()
    assert len(attention) == ATTENTION[name]
    modules = dict(family.denoiser.named_modules())
    assert all(modules[path] is module for path, module in attention)


def test_encoders_go_by_the_pipelines_names(name: str) -> None:
    encoders = shared(name).encoders
    count = {"flux": 2, "flux, not distilled": 2, "stable diffusion xl": 2}.get(name, 1)
    count = {"stable diffusion 3": 3, "stable diffusion 3 without t5": 2}.get(name, count)
    names = ["text_encoder", "text_encoder_2", "text_encoder_3"][:count]
    assert list(encoders) == names
    assert all(isinstance(encoder, nn.Module) for encoder in encoders.values())


def test_an_empty_negative_prompt_is_the_pipelines_own() -> None:
    family = shared("stable diffusion xl")
    text = family.unconditional(["", "a banana"])
    assert all(not state[0].any() for state in text.states.values())
    other = family.encode(["", "a banana"])
    assert same(text.select(slice(1, 2)), other.select(slice(1, 2)))
    plain = shared("stable diffusion")
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
    kind = type(shared("emoji").pipeline)
    # a subclass may encode its prompts in another way
    derived = type("MyPipeline", (kind,), {})(**shared("emoji").pipeline.components)
    with pytest.raises(ValueError, match="MyPipeline is not supported"):
        family_of(derived)


def test_a_pipeline_without_an_encoder_is_refused() -> None:
    pipeline = tiny.stable_diffusion_3()
    pipeline.text_encoder_2 = None
    with pytest.raises(ValueError, match="without a text_encoder_2"):
        family_of(pipeline)


def test_impossible_sizes_are_refused(name: str) -> None:
    pipeline = shared(name).pipeline
    with pytest.raises(ValueError, match="multiples of"):
        family_of(pipeline, height=17, width=16)
    if name == "wan":
        with pytest.raises(ValueError, match="frames must be one more than a multiple of 4"):
            family_of(pipeline, height=32, width=32, frames=6)
    else:
        with pytest.raises(ValueError, match="makes images"):
            family_of(pipeline, frames=5)


def test_defaults_are_the_pipelines_own() -> None:
    assert shared("stable diffusion xl").defaults == (50, 5.0)
    assert shared("flux").defaults == (28, 3.5)
    # there `guidance_scale` does nothing
    assert shared("flux, not distilled").defaults == (28, 1.0)
    wan = family_of(shared("wan").pipeline)
    assert isinstance(wan, type(shared("wan")))
    assert (wan.width, wan.height, wan.shape) == (832, 480, (4, 21, 60, 104))
    emoji = shared("emoji")
    assert (emoji.width, emoji.height) == (32, 32)
