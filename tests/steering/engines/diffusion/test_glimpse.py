"""What the denoiser sees in finished latents, for every family, and that nobody notices it look."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from steering.engines.diffusion.families import Family
from steering.engines.diffusion.glimpse import SHARE, Glimpse
from tests.steering.engines.diffusion import tiny
from tests.steering.engines.diffusion.test_attachment import call

SEEDS = (1, 2, 3)


@cache
def built(name: str) -> Family:
    return tiny.built(name)


@pytest.fixture(params=tiny.PIPELINES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def hooks(family: Family) -> int:
    return sum(
        len(module._forward_hooks) + len(module._forward_pre_hooks)
        for module in family.denoiser.modules()
    )


def glimpsed(family: Family, latents: Tensor) -> Tensor:
    with torch.no_grad():
        return Glimpse(family)(latents)


def whole(family: Family, latents: Tensor) -> tuple[Tensor, ...]:
    """All that the middle gives in a forward that runs to its end, under the empty prompt."""
    found: list[Any] = []
    handle = family.middle.register_forward_hook(lambda _m, _i, output: found.append(output))
    rows = len(latents)
    share = SHARE * family.scheduler.config.num_train_timesteps
    with torch.no_grad():
        text = family.encode([""]).expand(rows)
        guidance = torch.full((rows,), family.defaults[1])
        family.predict(latents, torch.full((rows,), share), text, guidance)
    handle.remove()
    (output,) = found
    return output if isinstance(output, tuple) else (output,)


def test_it_sees_every_place_of_every_row(name: str) -> None:
    family = built(name)
    latents = family.noise(SEEDS)
    states = glimpsed(family, latents)
    assert states.ndim == 3 and len(states) == len(SEEDS)
    assert bool(states.isfinite().all())
    # places of the picture, in a block that carries the text along too
    assert states.shape[1] == (2 * 2 * 2 if name == "wan" else 4 * 4)


def test_it_is_what_the_middle_says_in_a_forward_of_the_denoiser(name: str) -> None:
    family = built(name)
    latents = family.noise(SEEDS)
    *text, picture = whole(family, latents)
    states = glimpsed(family, latents)
    if picture.ndim == 4:
        height, width = picture.shape[2:]
        for place in (0, 1, width, height * width - 1):
            own = picture[:, :, place // width, place % width]
            assert torch.equal(states[:, place], own)
    else:
        assert torch.equal(states, picture)
    # which is not what it makes of the text
    assert all(part is None or part.shape[1] != states.shape[1] for part in text)


def test_it_tells_latents_apart_and_rows_keep_to_themselves(name: str) -> None:
    family = built(name)
    latents = family.noise(SEEDS)
    together = glimpsed(family, latents)
    scale = float(together.abs().max())
    for row in range(len(SEEDS)):
        alone = glimpsed(family, latents[row : row + 1])
        assert torch.allclose(together[row : row + 1], alone, atol=1e-5 * scale)
    assert not torch.allclose(together[0], together[1], atol=1e-2 * scale)
    # one changed number is seen by its row only
    latents[1].view(-1)[5] += 3.0
    moved = glimpsed(family, latents)
    assert torch.equal(moved[[0, 2]], together[[0, 2]])
    assert not torch.allclose(moved[1], together[1], atol=1e-3 * scale)


def test_it_leaves_nothing_behind(name: str) -> None:
    family = tiny.built(name)
    with torch.no_grad():
        bare = call(family, ["a knife", "a cat"])
    before, weights = hooks(family), tiny.weights_hash(family.pipeline)
    attributes = dict(vars(family.pipeline))
    glimpsed(family, family.noise(SEEDS))
    assert hooks(family) == before == 0
    assert tiny.weights_hash(family.pipeline) == weights
    assert vars(family.pipeline) == attributes
    with torch.no_grad():
        assert torch.equal(call(family, ["a knife", "a cat"]), bare)


@pytest.mark.parametrize("where", ["before the middle", "in the middle"])
def test_nor_where_the_denoiser_fails(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(Exception):
        pass

    def fail(*_args: Any, **_kwargs: Any) -> Any:
        raise Broken

    family = tiny.built("emoji")
    glimpse = Glimpse(family)
    broken: nn.Module = (
        family.middle if where == "in the middle" else family.denoiser.down_blocks[0]
    )
    monkeypatch.setattr(broken, "forward", fail)
    with pytest.raises(Broken):
        glimpse(family.noise([1]))
    assert hooks(family) == 0


def test_it_goes_no_further_than_it_has_to() -> None:
    family, ran = tiny.built("emoji"), list[str]()
    for part in ("down_blocks", "up_blocks"):
        for module in getattr(family.denoiser, part):
            module.register_forward_hook(lambda *_args, part=part: ran.append(part))
    glimpsed(family, family.noise([1]))
    assert ran == ["down_blocks"] * 2


def test_it_looks_under_the_empty_prompt_at_an_early_timestep(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    family = tiny.built("stable diffusion")
    asked: list[tuple[Any, ...]] = []
    predict = family.predict

    def spied(*args: Any) -> Any:
        asked.append(args)
        return predict(*args)

    monkeypatch.setattr(family, "predict", spied)
    latents = family.noise(SEEDS)
    glimpsed(family, latents)
    ((given, times, text, _),) = asked
    assert given is latents and times.tolist() == [60.0] * 3
    with torch.no_grad():
        empty = family.encode([""]).expand(3)
    assert torch.equal(text.states["text"], empty.states["text"])


def test_slopes_reach_the_latents(name: str) -> None:
    family = built(name)
    latents = family.noise(SEEDS).requires_grad_()
    (slope,) = torch.autograd.grad(Glimpse(family)(latents)[0].square().sum(), latents)
    norms = slope.flatten(1).norm(dim=1)
    assert norms[0] > 0 and not bool(norms[1:].any())
    assert all(parameter.grad is None for parameter in family.denoiser.parameters())
