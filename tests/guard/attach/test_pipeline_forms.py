"""Pipelines whose parts are compiled, offloaded, replaced or skipped: guarded, or refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

import guard
from guard.errors import GuardFailed
from tests.guard.attach.test_pipeline import CAT, KNIFE, config, generate
from tests.server.tiny_pipeline import save_guards, save_pipeline

POLICIES = ("knife", "overlay", "guide")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("forms")
    save_guards(path, save_pipeline(path / "model"))
    return path


def load(folder: Path) -> Any:
    loaded = StableDiffusionPipeline.from_pretrained(folder / "model", safety_checker=None)
    loaded.set_progress_bar_config(disable=True)
    return loaded


@pytest.fixture
def pipeline(folder: Path) -> Any:
    return load(folder)


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def _wrap_unet(pipeline: Any) -> None:
    pipeline.unet = torch.compile(pipeline.unet, backend="eager")


def _wrap_encoder(pipeline: Any) -> None:
    pipeline.text_encoder = torch.compile(pipeline.text_encoder, backend="eager")


def _in_place(pipeline: Any) -> None:
    pipeline.unet.compile(backend="eager")


def _forward(pipeline: Any) -> None:
    pipeline.unet.forward = torch.compile(pipeline.unet.forward, backend="eager")


def _offload_unet(pipeline: Any) -> None:
    pytest.importorskip("accelerate").cpu_offload(pipeline.unet, "cpu")


def _offload_all(pipeline: Any) -> None:
    accelerate = pytest.importorskip("accelerate")
    for part in (pipeline.unet, pipeline.text_encoder, pipeline.vae):
        accelerate.cpu_offload(part, "cpu")


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(
    "change", [_wrap_unet, _wrap_encoder, _in_place, _forward, _offload_unet, _offload_all]
)
def test_compiled_and_offloaded_parts_are_guarded_as_plain_ones(
    folder: Path, pipeline: Any, change: Callable[[Any], None], policy: str
) -> None:
    plain = load(folder)
    with guard.attached(plain, "test", config=config(folder, policy)) as handle:
        expected = generate(plain, KNIFE)
        (told,) = handle.verdicts()
    change(pipeline)
    bare = generate(pipeline, KNIFE)
    before = dict(vars(pipeline))
    with guard.attached(pipeline, "test", config=config(folder, policy)) as handle:
        np.testing.assert_allclose(generate(pipeline, KNIFE), expected, atol=1e-5)
        (verdict,) = handle.verdicts()
    assert verdict.outcome == told.outcome != "pass"
    assert vars(pipeline) == before
    assert type(pipeline) is StableDiffusionPipeline
    assert torch._dynamo.eval_frame._stance.stance == "default"
    assert np.array_equal(generate(pipeline, KNIFE), bare)


def _another_unet(pipeline: Any) -> None:
    pipeline.unet = type(pipeline.unet).from_config(pipeline.unet.config).eval()


def _another_encoder(pipeline: Any) -> None:
    pipeline.text_encoder = type(pipeline.text_encoder)(pipeline.text_encoder.config).eval()


def _hidden_projections(pipeline: Any) -> None:
    class Processor:
        """An attention that runs no projection of the text."""

        def __call__(self, attention: Any, hidden_states: Any, *_args: Any, **_more: Any) -> Any:
            return hidden_states

    pipeline.unet.set_attn_processor(Processor())


def _cached_block(pipeline: Any) -> None:
    """As caches of features do: the middle of the network runs at the first step alone."""
    block = pipeline.unet.mid_block
    forward, kept = block.forward, []

    def cached(*args: Any, **kwargs: Any) -> Any:
        if not kept:
            kept.append(forward(*args, **kwargs))
        return kept[0]

    block.forward = cached


def _cached_network(pipeline: Any) -> None:
    """The network runs at the first step alone, and is not called again."""

    class Cached(torch.nn.Module):
        def __init__(self, network: Any) -> None:
            super().__init__()
            self.config, self.dtype, self.network = network.config, network.dtype, network
            self.kept: list[Any] = []

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            if not self.kept:
                self.kept.append(self.network(*args, **kwargs))
            return self.kept[0]

    pipeline.unet = Cached(pipeline.unet)


@pytest.mark.parametrize(
    "change",
    [_another_unet, _another_encoder, _hidden_projections, _cached_block, _cached_network],
)
def test_what_is_replaced_while_guards_are_attached_is_refused_by_the_call(
    folder: Path, pipeline: Any, change: Callable[[Any], None]
) -> None:
    with guard.attached(pipeline, "test", config=config(folder, "overlay")) as handle:
        generate(pipeline, KNIFE)
        assert handle.verdicts()[0].outcome != "pass"
        change(pipeline)
        with pytest.raises(GuardFailed, match=r"another network|was not run|cannot be guarded"):
            generate(pipeline, KNIFE)


def test_a_callback_may_change_latents_and_no_embeddings(folder: Path, pipeline: Any) -> None:
    def look(_pipeline: Any, _step: int, _time: Any, given: dict[str, Any]) -> dict[str, Any]:
        return {"latents": given["latents"] * 1.0}

    def swap(_pipeline: Any, _step: int, _time: Any, given: dict[str, Any]) -> dict[str, Any]:
        return {"prompt_embeds": torch.zeros_like(given["prompt_embeds"])}

    def write(_pipeline: Any, _step: int, _time: Any, given: dict[str, Any]) -> dict[str, Any]:
        given["prompt_embeds"].zero_()
        return {}

    inputs = ["latents", "prompt_embeds"]
    with guard.attached(pipeline, "test", config=config(folder)) as handle:
        expected = generate(pipeline, KNIFE)
        options = {"callback_on_step_end_tensor_inputs": inputs}
        told = generate(pipeline, KNIFE, callback_on_step_end=look, **options)
        assert np.array_equal(told, expected)
        for callback in (swap, write):
            with pytest.raises(GuardFailed, match="changes prompt_embeds"):
                generate(pipeline, KNIFE, callback_on_step_end=callback, **options)
        generate(pipeline, CAT)
        assert handle.verdicts()[0].outcome == "pass"


def test_a_call_that_encodes_nothing_is_refused(folder: Path, pipeline: Any) -> None:
    with guard.attached(pipeline, "test", config=config(folder)):
        encode = type(pipeline).encode_prompt
        vars(pipeline)["encode_prompt"] = lambda *args, **more: encode(pipeline, *args, **more)
        with pytest.raises(GuardFailed, match="has not encoded a prompt"):
            generate(pipeline, KNIFE)


def test_what_cannot_be_followed_is_refused_by_the_call_itself(folder: Path, pipeline: Any) -> None:
    with guard.attached(pipeline, "test", config=config(folder)) as handle:
        with pytest.raises(GuardFailed, match="clip_skip"):
            generate(pipeline, KNIFE, clip_skip=1)
        generate(pipeline, KNIFE)
        assert handle.verdicts()[0].outcome == "refined"


def test_contexts_within_each_other_restore_the_pipeline(folder: Path, pipeline: Any) -> None:
    generate(pipeline, CAT)
    before, kind = dict(vars(pipeline)), type(pipeline)
    with guard.attached(pipeline, "test", config=config(folder)) as outer:
        with guard.attached(pipeline, "test", config=config(folder, "guide")) as inner:
            generate(pipeline, KNIFE)
            # it reads what the outer one has refined
            assert inner.verdicts()[0].outcome == "pass"
        assert outer.verdicts()[0].outcome == "refined"
        generate(pipeline, CAT)
        assert outer.verdicts()[0].outcome == "pass"
    assert vars(pipeline) == before
    assert type(pipeline) is kind
