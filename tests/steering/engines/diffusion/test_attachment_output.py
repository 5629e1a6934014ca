"""Guards of prompts and of images on one pipeline: who is asked when, and who is told."""

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
    gaze: MeanGuards | None = None,
) -> Iterator[PipelineAttachment]:
    """A guard of prompts "g", and two of images, "p" and "q"."""
    finished = OutputBank([gaze or MeanGuards("p", "q")])
    bank = EmbeddingBank([ShiftGuards("g")])
    made = PipelineAttachment(family, ImageStacks(prompts=bank, output=finished), guards, after)
    try:
        yield made
    finally:
        made.remove()


@pytest.mark.parametrize("name", tiny.PIPELINES)
def test_it_sees_what_the_engine_sees(name: str) -> None:
    if name == "flux, not distilled":
        pytest.skip("guidance is another argument there")
    family = shared(name)
    guards = [carried("p"), carried("g", strength=0.5)]
    with attached(family, *guards) as made:
        call(family, "a knife")
        told = made.readings(0)
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
    assert told.keys() == expected.keys() == {"g", "p"}
    assert told["p"].score == pytest.approx(expected["p"].score, rel=1e-3, abs=1e-3)
    assert [told[name].position for name in "gp"] == [0, 2]
    assert told["p"].fired and not told["p"].resolved


def test_who_is_told_hears_twice_and_can_end_the_call_both_times() -> None:
    class Ended(Exception):
        pass

    heard: list[set[str]] = []

    def listen(made: PipelineAttachment) -> None:
        heard.append(set(made.readings(0)))
        if len(heard) == ends_at:
            raise Ended

    family = shared("stable diffusion")
    for ends_at in (1, 2):
        heard.clear()
        gaze = MeanGuards("p")
        with (
            attached(family, carried("g"), carried("p"), after=listen, gaze=gaze),
            pytest.raises(Ended),
        ):
            call(family, "a knife")
        # a prompt that is refused is not drawn, and so there is nothing to look at
        assert heard == [{"g"}, {"g", "p"}][:ends_at]
        assert len(gaze.seen) == ends_at - 1


def test_a_negative_prompt_has_no_rows_of_its_own() -> None:
    family = shared("flux, not distilled")
    prompts = {"prompt": ["a cat", "a dog"], "negative_prompt": "a knife", "true_cfg_scale": 3.0}
    bare = call(family, prompts)
    with attached(family, carried("p", fires=False)) as made:
        assert torch.equal(call(family, prompts), bare)
        assert made.rows == 2 and made.readings(0) != made.readings(1)


def test_those_who_look_at_images_do_not_mind_how_they_were_asked_for() -> None:
    """What guards of prompts cannot follow is drawn like anything else."""
    family = shared("stable diffusion 3")
    given = embeddings(family, family.encode(["a knife"]))
    given["prompt_embeds"] = given["prompt_embeds"].clone()
    given["prompt_embeds"][0, 0, -1] = 1.0
    bare = call(family, given)
    with attached(family, carried("p")) as made:
        assert "prepare_ip_adapter_image_embeds" not in vars(family.pipeline)
        assert torch.equal(call(family, given), bare)
        assert made.flags() == ([True], [False])
    with attached(family, carried("p"), carried("g")), pytest.raises(Unfollowed, match="not as"):
        call(family, given)


@pytest.mark.parametrize("name", ["flux", "stable diffusion", "stable diffusion xl", "wan"])
@pytest.mark.parametrize(("height", "width"), [(32, 16), (8, 32), (16, 16)])
def test_images_of_any_size_are_looked_at_in_that_size(name: str, height: int, width: int) -> None:
    if name == "wan":
        height, width = 2 * height, 2 * width
    family, size = tiny.built(name), {"height": height, "width": width}
    gaze = MeanGuards("p")
    with attached(family, carried("p"), gaze=gaze):
        latents = call(family, "a knife", **size)
    # as a family of that size sees it
    frames = {"frames": 5} if name == "wan" else {}
    other = family_of(family.pipeline, **size, **frames)
    other.max_tokens = family.max_tokens
    (seen,) = gaze.seen
    assert seen.shape == (1, *other.shape)
    assert torch.equal(seen, other.unpacked(latents))


def test_without_guards_of_images_nobody_looks() -> None:
    family, gaze = shared("emoji"), MeanGuards("p")
    step = family.scheduler.step
    with attached(family, carried("g"), gaze=gaze) as made:
        assert family.scheduler.step == step
        call(family, "a knife")
        assert set(made.readings(0)) == {"g"} and gaze.seen == []


def test_nan_in_a_image_makes_its_row_invalid() -> None:
    class Blind(MeanGuards):
        def sense(self, latents: Tensor, columns: Sequence[int]) -> Tensor:
            scores = super().sense(latents, columns)
            scores[1] = torch.nan
            return scores

    family = shared("emoji")
    with attached(family, carried("p"), gaze=Blind("p")) as made:
        call(family, ["a knife", "a cat", "a dog"])
        assert made.flags() == ([True, False, True], [False, True, False])
