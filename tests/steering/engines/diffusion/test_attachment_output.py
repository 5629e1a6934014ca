"""Prompt guards and output guards on one pipeline: when they read, and the callback."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from steering.engines.diffusion.attachment import PipelineAttachment
from steering.engines.diffusion.engine import DiffusionEngine, ImageStart
from steering.engines.diffusion.families import Family, family_of
from steering.engines.errors import Unfollowed
from steering.hidden.rows import RowGuard
from steering.images.embedding import EmbeddingBank
from steering.images.output import OutputBank
from steering.images.stacks import ImageStacks
from tests.steering.engines.diffusion import tiny
from tests.steering.engines.diffusion.guards import MeanGuards, ShiftGuards, carried
from tests.steering.engines.diffusion.test_attachment import call, embeddings, quiet
from tests.steering.engines.diffusion.tiny import shared


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    """As in a pipeline's own call: with them the encoders take other kernels."""
    with torch.no_grad():
        yield


@contextmanager
def attached(
    family: Family,
    *guards: RowGuard,
    after: Callable[[PipelineAttachment], None] = quiet,
    mean_guards: MeanGuards | None = None,
) -> Iterator[PipelineAttachment]:
    """A prompt guard "g", and two output guards, "p" and "q"."""
    finished = OutputBank([mean_guards or MeanGuards("p", "q")])
    bank = EmbeddingBank([ShiftGuards("g")])
    attachment = PipelineAttachment(
        family, ImageStacks(prompts=bank, output=finished), guards, after
    )
    try:
        yield attachment
    finally:
        attachment.remove()


@pytest.mark.parametrize("name", tiny.PIPELINES)
def test_readings_are_those_of_the_engine(name: str) -> None:
    if name == "flux, not distilled":
        pytest.skip("guidance is another argument there")
    family = shared(name)
    guards = [carried("p"), carried("g", strength=0.5)]
    with attached(family, *guards) as attachment:
        call(family, "a knife")
        readings = attachment.readings(0)
    engine = DiffusionEngine(
        family,
        ImageStacks(
            prompts=EmbeddingBank([ShiftGuards("g")]), output=OutputBank([MeanGuards("p", "q")])
        ),
        capacity=1,
    )
    engine.start([ImageStart("a knife", seed=7, steps=2, guidance=3.0, guards=guards)])
    while not engine.step():
        pass
    expected = engine.readings(0)
    assert readings.keys() == expected.keys() == {"g", "p"}
    assert readings["p"].score == pytest.approx(expected["p"].score, rel=1e-3, abs=1e-3)
    assert [readings[name].position for name in "gp"] == [0, 2]
    assert readings["p"].fired and not readings["p"].resolved


def test_the_callback_runs_twice_and_can_end_the_call_both_times() -> None:
    class Ended(Exception):
        pass

    calls: list[set[str]] = []

    def record(attachment: PipelineAttachment) -> None:
        calls.append(set(attachment.readings(0)))
        if len(calls) == ends_at:
            raise Ended

    family = shared("stable diffusion")
    for ends_at in (1, 2):
        calls.clear()
        mean_guards = MeanGuards("p")
        with (
            attached(family, carried("g"), carried("p"), after=record, mean_guards=mean_guards),
            pytest.raises(Ended),
        ):
            call(family, "a knife")
        # a refused prompt has no image for the output guards
        assert calls == [{"g"}, {"g", "p"}][:ends_at]
        assert len(mean_guards.latents) == ends_at - 1


def test_a_negative_prompt_has_no_rows_of_its_own() -> None:
    family = shared("flux, not distilled")
    prompts = {"prompt": ["a cat", "a dog"], "negative_prompt": "a knife", "true_cfg_scale": 3.0}
    bare = call(family, prompts)
    with attached(family, carried("p", fires=False)) as attachment:
        assert torch.equal(call(family, prompts), bare)
        assert attachment.rows == 2 and attachment.readings(0) != attachment.readings(1)


def test_output_guards_accept_embeddings_that_prompt_guards_refuse() -> None:
    """Embeddings of another layout do not concern them."""
    family = shared("stable diffusion 3")
    arguments = embeddings(family, family.encode(["a knife"]))
    arguments["prompt_embeds"] = arguments["prompt_embeds"].clone()
    arguments["prompt_embeds"][0, 0, -1] = 1.0
    bare = call(family, arguments)
    with attached(family, carried("p")) as attachment:
        assert "prepare_ip_adapter_image_embeds" not in vars(family.pipeline)
        assert torch.equal(call(family, arguments), bare)
        assert attachment.flags() == ([True], [False])
    with attached(family, carried("p"), carried("g")), pytest.raises(Unfollowed, match="not as"):
        call(family, arguments)


@pytest.mark.parametrize("name", ["flux", "stable diffusion", "stable diffusion xl", "wan"])
@pytest.mark.parametrize(("height", "width"), [(32, 16), (8, 32), (16, 16)])
def test_latents_are_read_in_the_size_of_the_call(name: str, height: int, width: int) -> None:
    if name == "wan":
        height, width = 2 * height, 2 * width
    family, size = tiny.built(name), {"height": height, "width": width}
    mean_guards = MeanGuards("p")
    with attached(family, carried("p"), mean_guards=mean_guards):
        latents = call(family, "a knife", **size)
    # unpacked by a family of that size
    frames = {"frames": 5} if name == "wan" else {}
    other = family_of(family.pipeline, **size, **frames)
    other.max_tokens = family.max_tokens
    (latents_read,) = mean_guards.latents
    assert latents_read.shape == (1, *other.shape)
    assert torch.equal(latents_read, other.unpacked(latents))


def test_without_output_guards_the_scheduler_is_not_wrapped() -> None:
    family, mean_guards = shared("emoji"), MeanGuards("p")
    step = family.scheduler.step
    with attached(family, carried("g"), mean_guards=mean_guards) as attachment:
        assert family.scheduler.step == step
        call(family, "a knife")
        assert set(attachment.readings(0)) == {"g"} and mean_guards.latents == []


def test_a_nan_score_of_an_image_makes_its_row_invalid() -> None:
    class Blind(MeanGuards):
        def sense(self, latents: Tensor, columns: Sequence[int]) -> Tensor:
            scores = super().sense(latents, columns)
            scores[1] = torch.nan
            return scores

    family = shared("emoji")
    with attached(family, carried("p"), mean_guards=Blind("p")) as attachment:
        call(family, ["a knife", "a cat", "a dog"])
        assert attachment.flags() == ([True, False, True], [False, True, False])
