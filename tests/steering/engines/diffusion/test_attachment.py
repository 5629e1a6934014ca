"""Guards on a pipeline that a caller runs: its latents, and the pipeline after removal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from inspect import signature
from typing import Any

import pytest
import torch
from torch import Tensor

from steering.engines.diffusion.attachment import PipelineAttachment
from steering.engines.diffusion.engine import DiffusionEngine, ImageStart
from steering.engines.diffusion.families import Family
from steering.engines.errors import Unfollowed
from steering.hidden.rows import RowGuard
from steering.images.conditioning import Conditioning
from tests.steering.engines.diffusion import tiny
from tests.steering.engines.diffusion.guards import ShiftGuards, carried, same
from tests.steering.engines.diffusion.running import stacked
from tests.steering.engines.diffusion.tiny import shared

LONG = "the cat and the dog in the red table of a banana on the knife"


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    """As in a pipeline's own call: with them the encoders take other kernels."""
    with torch.no_grad():
        yield


def quiet(_attachment: PipelineAttachment) -> None:
    """A callback that does nothing."""


@contextmanager
def attached(
    family: Family,
    stack: ShiftGuards,
    guards: Sequence[RowGuard],
    after: Callable[[PipelineAttachment], None] = quiet,
    **more: Any,
) -> Iterator[PipelineAttachment]:
    attachment = PipelineAttachment(family, stacked(stack, **more), guards, after)
    try:
        yield attachment
    finally:
        attachment.remove()


def call(family: Family, prompt: Any, **more: Any) -> Tensor:
    """The latents of the pipeline's call for `prompt`, which may be a dict of arguments."""
    arguments = prompt if isinstance(prompt, dict) else {"prompt": prompt}
    known = signature(type(family.pipeline).__call__).parameters
    options: dict[str, Any] = {
        "height": family.height,
        "width": family.width,
        "num_inference_steps": 2,
        "guidance_scale": 3.0,
        "output_type": "latent",
        "generator": torch.Generator().manual_seed(7),
        "max_sequence_length": tiny.T5_TOKENS,
        "num_frames": 5,
        "use_resolution_binning": False,
    }
    options = {key: value for key, value in options.items() if key in known}
    output = family.pipeline(**(options | arguments | more))
    latents = output.frames if hasattr(output, "frames") else output.images
    assert isinstance(latents, Tensor)
    return latents


def embeddings(family: Family, text: Conditioning) -> dict[str, Any]:
    """`text` as the arguments of a call that passes embeddings."""
    parts = family.put_together(text)
    names = {
        "FluxPipeline": ("prompt_embeds", "pooled_prompt_embeds"),
        "PixArtSigmaPipeline": ("prompt_embeds", "prompt_attention_mask"),
        "StableDiffusion3Pipeline": ("prompt_embeds", "pooled_prompt_embeds"),
        "StableDiffusionXLPipeline": ("prompt_embeds", "pooled_prompt_embeds"),
    }.get(type(family.pipeline).__name__, ("prompt_embeds",))
    arguments: dict[str, Any] = dict(zip(names, parts, strict=True))
    if type(family.pipeline).__name__ != "FluxPipeline":
        arguments |= {
            f"negative_{name}": torch.zeros_like(part) for name, part in arguments.items()
        }
    if type(family.pipeline).__name__ == "PixArtSigmaPipeline":
        arguments["negative_prompt_attention_mask"] = torch.ones_like(parts[1])
        arguments["negative_prompt"] = None
    return arguments


def test_silent_guards_leave_every_bit(name: str) -> None:
    family, stack = shared(name), ShiftGuards("g")
    bare = call(family, ["a knife", "a cat"])
    before = tiny.weights_hash(family.pipeline)
    with attached(family, stack, [carried("g", fires=False)]) as attachment:
        assert torch.equal(call(family, ["a knife", "a cat"]), bare)
        assert attachment.rows == 2 and attachment.flags() == ([False, False], [False, False])
    assert len(stack.texts) == 1
    assert same(stack.texts[0], family.encode(["a knife", "a cat"]))
    assert tiny.weights_hash(family.pipeline) == before


def test_a_guard_that_fires_gives_the_latents_of_the_engine(name: str) -> None:
    family, guard = shared(name), carried("g", strength=0.5)
    if name == "flux, not distilled":
        pytest.skip("guidance is another argument there")
    with attached(family, ShiftGuards("g"), [guard]) as attachment:
        got = call(family, "a knife")
        assert attachment.readings(0)["g"].fired and attachment.flags() == ([True], [False])
    engine = DiffusionEngine(family, stacked(ShiftGuards("g")), capacity=1)
    engine.start([ImageStart("a knife", seed=7, steps=2, guidance=3.0, guards=[guard])])
    while not engine.step():
        pass
    latents = engine._slots.latents
    torch.testing.assert_close(got, latents, rtol=1e-4, atol=1e-4 * float(latents.abs().max()))
    assert not torch.allclose(got, call(family, "a knife"), rtol=1e-3)


def test_removal_restores_the_pipeline(name: str) -> None:
    family = shared(name)
    pipeline = family.pipeline
    attributes, encode = dict(vars(pipeline)), pipeline.encode_prompt
    bare = call(family, "a knife")
    with attached(family, ShiftGuards("g"), [carried("g")]):
        assert pipeline.encode_prompt != encode
        call(family, "a knife")
    assert vars(pipeline).keys() == attributes.keys() | vars(pipeline).keys() - {
        "encode_prompt",
        "check_inputs",
        "prepare_ip_adapter_image_embeds",
    }
    assert pipeline.encode_prompt == encode
    assert torch.equal(call(family, "a knife"), bare)


def test_an_attribute_that_was_replaced_is_restored() -> None:
    family = tiny.built("emoji")
    encode_prompt = family.pipeline.encode_prompt

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return encode_prompt(*args, **kwargs)

    wrapped.__wrapped__ = encode_prompt  # type: ignore[attr-defined]
    family.pipeline.encode_prompt = wrapped
    with attached(family, ShiftGuards("g"), [carried("g")]):
        assert family.pipeline.encode_prompt is not wrapped
    assert family.pipeline.encode_prompt is wrapped


def test_embeddings_of_the_caller_are_guarded(name: str) -> None:
    family, stack = shared(name), ShiftGuards("g")
    arguments = embeddings(family, family.encode(["a knife"]))
    bare = call(family, arguments)
    with attached(family, stack, [carried("g", fires=False)]) as attachment:
        assert torch.equal(call(family, arguments), bare)
        assert attachment.rows == 1
    if name != "pixart":
        assert all(bool(mask.all()) for mask in stack.texts[0].masks.values())
    with attached(family, stack, [carried("g")]) as attachment:
        assert not torch.allclose(call(family, arguments), bare, rtol=1e-3)
        assert attachment.flags()[0] == [True]


def test_every_image_of_a_prompt_has_its_row(name: str) -> None:
    family, stack = shared(name), ShiftGuards("g")
    argument = "num_videos_per_prompt" if name == "wan" else "num_images_per_prompt"
    with attached(family, stack, [carried("g")]) as attachment:
        call(family, ["a cat", LONG], **{argument: 2})
        assert attachment.rows == 4
    text, cut = stack.texts[0], stack.texts[1]
    assert same(text, family.encode(["a cat", LONG]).select(torch.tensor([0, 0, 1, 1])))
    # the text past the encoder's length is read for both images of the prompt
    windows = family.overflow([LONG])[0]
    assert windows is not None and cut.rows == 2 * windows.rows


def test_text_past_the_length_of_one_encoder_of_several_is_read() -> None:
    family, stack = shared("stable diffusion xl"), ShiftGuards("g")
    with attached(family, stack, [carried("g")]):
        call(family, "a cat", prompt_2=LONG)
    first, cut = stack.texts[:2]
    assert first.masks["clip_l"].sum() == 4 and first.masks["clip_g"].all()
    (windows,) = family.overflow([LONG])
    assert windows is not None and same(cut, windows)


def test_embeddings_of_another_layout_are_refused() -> None:
    family = shared("stable diffusion 3")
    arguments = embeddings(family, family.encode(["a knife"]))
    # where the CLIP encoders' tokens are padded to T5's width
    arguments["prompt_embeds"] = arguments["prompt_embeds"].clone()
    arguments["prompt_embeds"][0, 0, -1] = 1.0
    with (
        attached(family, ShiftGuards("g"), [carried("g")]),
        pytest.raises(Unfollowed, match="not as StableDiffusion3Pipeline makes them"),
    ):
        call(family, arguments)


def test_a_negative_prompt_is_not_guarded() -> None:
    family, stack = shared("flux, not distilled"), ShiftGuards("g")
    prompts = {"prompt": "a cat", "negative_prompt": "a knife", "true_cfg_scale": 3.0}
    with attached(family, stack, [carried("g", fires=False)]) as attachment:
        guarded = call(family, prompts)
        assert len(stack.texts) == 1 and attachment.rows == 1
        assert same(stack.texts[0], family.encode(["a cat"]))
        call(family, prompts)
        assert same(stack.texts[1], family.encode(["a cat"]))
    assert torch.equal(guarded, call(family, prompts))
    plain = shared("stable diffusion")
    with attached(plain, stack, [carried("g", fires=False)]):
        call(plain, "a cat", negative_prompt="a knife")
    assert same(stack.texts[2], plain.encode(["a cat"]))


def test_images_as_prompts_are_refused() -> None:
    family = shared("stable diffusion")
    image = [torch.zeros(2, 1, 1, 16)]
    with (
        attached(family, ShiftGuards("g"), [carried("g")]),
        pytest.raises(Unfollowed, match="ip_adapter_image"),
    ):
        call(family, "a cat", ip_adapter_image_embeds=image)


def test_other_layers_of_an_encoder_are_refused() -> None:
    family = shared("stable diffusion")
    with (
        attached(family, ShiftGuards("g"), [carried("g")]),
        pytest.raises(Unfollowed, match="clip_skip"),
    ):
        call(family, "a cat", clip_skip=1)
    bare = call(family, "a cat", num_images_per_prompt=2)
    with attached(family, ShiftGuards("g"), []) as attachment:
        assert torch.equal(call(family, "a cat", num_images_per_prompt=2), bare)
        assert attachment.rows == 2 and attachment.readings(0) == {}


def test_the_callback_may_end_the_call() -> None:
    class Blocked(Exception):
        pass

    def block(attachment: PipelineAttachment) -> None:
        assert attachment.rows == 1
        raise Blocked

    family = shared("emoji")
    with attached(family, ShiftGuards("g"), [carried("g")], block), pytest.raises(Blocked):
        call(family, "a cat")


@pytest.mark.parametrize("where", ["reading", "action", "embedding"])
def test_nan_makes_a_row_invalid(where: str) -> None:
    class Spoilt(ShiftGuards):
        def sense(self, text: Conditioning) -> Tensor:
            return super().sense(text) * (torch.nan if where == "reading" else 1.0)

        def act(self, *args: Any) -> Any:
            acted = super().act(*args)
            scale = torch.nan if where == "action" else 1.0
            states = {name: state * scale for name, state in acted.text.states.items()}
            return type(acted)(acted.text.with_states(states), acted.steps, acted.score)

    family = shared("emoji")
    text = family.encode(["a knife", "a cat"])
    if where == "embedding":
        text = text.with_states({"text": text.states["text"].clone()})
        text.states["text"][0, 3, 3] = torch.nan
    with attached(family, Spoilt("g"), [carried("g")]) as attachment:
        call(family, embeddings(family, text))
        assert attachment.flags()[1] == [True, where != "embedding"]
    with attached(family, ShiftGuards("g"), [carried("g", fires=False)]) as attachment:
        call(family, "a knife")
        assert attachment.flags()[1] == [False]


def test_guards_may_take_gradients_in_inference_mode() -> None:
    class Descend(ShiftGuards):
        def act(self, text: Conditioning, *more: Any) -> Any:
            state = text.states["text"].clone().requires_grad_()
            with torch.enable_grad():
                (slope,) = torch.autograd.grad(state.square().sum(), state)
            return super().act(text.with_states({"text": state.detach() - slope}), *more)

    family = shared("emoji")
    with attached(family, Descend("g"), [carried("g")]):
        bare = call(family, "a cat")
        with torch.inference_mode():
            assert torch.equal(call(family, "a cat"), bare)
