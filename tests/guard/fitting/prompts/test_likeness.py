from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor, nn

from guard.fitting.prompts import likeness
from guard.fitting.prompts.likeness import Likeness
from guard.models.images import ImageModel
from steering.images.conditioning import Conditioning
from tests.steering.engines.diffusion import tiny

WIDTH = 6


class Linear:
    """A denoiser that says a fixed map of the text's mean, the same everywhere in an image."""

    distilled = False
    device = torch.device("cpu")

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.scheduler = DDIMScheduler(clip_sample=False)  # type: ignore[no-untyped-call]
        self.map = nn.Linear(WIDTH, 4, bias=False)
        self.seen: list[tuple[Tensor, Tensor]] = []

    def arrange(self, scheduler: Any, steps: int) -> None:
        scheduler.set_timesteps(steps)

    def noise(self, seeds: Any) -> Tensor:
        draws = [torch.randn(4, 2, 2, generator=torch.Generator().manual_seed(s)) for s in seeds]
        return torch.stack(draws)

    def unconditional(self, negative: list[str]) -> Conditioning:
        return text(torch.zeros(len(negative), WIDTH))

    def predict(self, latents: Tensor, times: Tensor, said: Conditioning, _scale: Tensor) -> Tensor:
        self.seen.append((latents, times))
        outputs: Tensor = self.map(said.states["text"].mean(1))[..., None, None]
        return outputs.expand_as(latents)


def text(vectors: Tensor) -> Conditioning:
    states = vectors[:, None].expand(-1, 3, -1)
    return Conditioning({"text": states}, {"text": torch.ones(len(vectors), 3).bool()})


def vectors(count: int, seed: int) -> Tensor:
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed))


def test_it_is_1_for_the_concept_and_0_for_safe_prompts() -> None:
    named, safe = vectors(5, 1) + 2, vectors(7, 2)
    likeness_of = Likeness(Linear(), text(named), text(safe), seed=3)  # type: ignore[arg-type]
    one, none = named.mean(0), safe.mean(0)
    texts = torch.stack([one, none, (one + none) / 2, 2 * none - one])
    assert likeness_of(text(texts)).tolist() == pytest.approx([1, 0, 0.5, -1], abs=1e-4)


def test_all_rows_have_the_same_views_and_count_as_progress() -> None:
    family, counts = Linear(), list[int]()
    likeness_of = Likeness(family, text(vectors(4, 1) + 2), text(vectors(4, 2)), seed=3)  # type: ignore[arg-type]
    texts = vectors(31, 4)
    together = likeness_of(text(texts), counts.append)
    assert sum(counts) == 31
    alone = torch.cat([likeness_of(text(row[None])) for row in texts])
    assert torch.allclose(together, alone, atol=1e-5)
    # one view is of one image at one timestep, none at the ends of the schedule
    latents, times = family.seen[-1]
    assert len(latents) == likeness.VIEWS
    assert len(set(times.tolist())) == likeness.VIEWS
    assert times.min() > 0 and times.max() < 900


def test_a_concept_that_moves_nothing_is_no_error() -> None:
    same = vectors(4, 1)
    likeness_of = Likeness(Linear(), text(same), text(same), seed=0)  # type: ignore[arg-type]
    assert bool(likeness_of(text(vectors(2, 5))).isfinite().all())


@pytest.mark.parametrize("name", tiny.PIPELINES)
def test_every_family_is_supported(name: str) -> None:
    family = tiny.built(name)
    image_model = ImageModel(family, name=name, architecture="")
    named = image_model.encode(["a knife", "a knife on the table"])
    safe = image_model.encode(["a cat", "a cat on the table"])
    likeness_of = Likeness(family, named, safe, seed=0)
    both = torch.cat([likeness_of(named), likeness_of(safe)])
    assert both[:2].mean().item() == pytest.approx(1, abs=1e-3)
    assert both[2:].mean().item() == pytest.approx(0, abs=1e-3)
