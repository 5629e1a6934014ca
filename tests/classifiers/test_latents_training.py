"""Training of the classifiers of latents, and the batches that it uses."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from classifiers import latents as module
from classifiers.latents import GRID, LatentClassifiers, LatentRecipe, train_latents
from tests.classifiers.nets import normal

CHANNELS = 8
RECIPE = LatentRecipe(steps=60, batch=32, rate=1e-2)


def planted(count: int, *, side: int = 8, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Latents, and which show the concept: every second one, in three channels at one of 8 x 8
    places."""
    latents = normal(count, CHANNELS, side, side, seed=seed)
    shown, extent = torch.arange(count) % 2 == 0, side // 8
    for row in range(0, count, 2):
        down, right = divmod(row // 2 * 5 % 64, 8)
        place = latents[row, :3, down * extent :, right * extent :]
        place[:, :extent, :extent] += 12.0
    return latents, shown


def share_right(net: LatentClassifiers, latents: Tensor, shown: Tensor) -> float:
    return float(((net(latents)[:, 0] > 0) == shown).float().mean())


def test_a_concept_at_a_single_place_is_found_wherever_it_is() -> None:
    net = train_latents(*planted(200), RECIPE, seed=0)
    assert len(net) == 1 and net.channels == CHANNELS
    latents, shown = planted(2 * 64, seed=5)
    assert len({int(image[0].argmax()) for image in latents[shown]}) == 64
    assert share_right(net, latents, shown) > 0.95


def test_larger_latents_can_be_learned_too() -> None:
    net = train_latents(*planted(100, side=16), RECIPE, seed=0)
    assert share_right(net, *planted(100, side=16, seed=5)) > 0.9


def test_videos_are_learned_from_their_frames() -> None:
    images, shown = planted(120)
    videos = normal(120, CHANNELS, 3, 8, 8, seed=2)
    videos += (images * (images > 6.0))[:, :, None]
    net = train_latents(videos, shown, RECIPE, seed=0)
    once = videos.clone()
    once[:, :, 1:] = normal(120, CHANNELS, 2, 8, 8, seed=3)
    # a single frame that shows it is enough
    for batch in (videos, once):
        logits = net(batch)[:, 0]
        assert bool((logits[shown] > logits[~shown].max()).all())


@pytest.mark.parametrize("frames", [(), (2,)])
def test_standardising_is_folded_into_the_network(frames: tuple[int, ...]) -> None:
    """Other units and another origin of every channel give the same training, and the same logits
    of the folded network up to the border."""
    latents, shown = planted(60)
    latents = latents[:, :, None].expand(-1, -1, *frames, -1, -1) if frames else latents
    scale = torch.tensor([0.01, 5.0, 30.0, 1.0, 0.3, 10.0, 2.0, 0.5])
    shift = 10 * scale * normal(CHANNELS, seed=3)
    around = (-1, *[1] * (latents.ndim - 2))
    moved = latents * scale.view(around) + shift.view(around)
    recipe = LatentRecipe(steps=30)
    plain, other = (train_latents(batch, shown, recipe, seed=0) for batch in (latents, moved))
    assert torch.allclose(plain(latents), other(moved), atol=1e-2)
    # without the folding, both would have the same weight
    first = other.weights[0] * scale.view(-1, 1, 1)
    assert torch.allclose(first, plain.weights[0], rtol=1e-2, atol=1e-3)


def test_a_constant_channel_does_no_harm() -> None:
    latents, shown = planted(200)
    latents[:, 3] = 7.0
    assert share_right(train_latents(latents, shown, RECIPE, seed=0), latents, shown) > 0.95


def test_half_precision_latents_are_learned_in_single() -> None:
    latents, shown = planted(40)
    recipe = LatentRecipe(steps=5)
    rough = train_latents(latents.half(), shown, recipe, seed=0)
    assert all(tensor.dtype == torch.float32 for tensor in (*rough.weights, *rough.biases))
    single = train_latents(latents.half().float(), shown, recipe, seed=0)
    assert torch.equal(rough(latents), single(latents))


def test_rare_labels_count_as_much_as_common_ones() -> None:
    latents, shown = planted(200)
    few = ~shown | (torch.arange(200) < 10)
    net = train_latents(latents[few], shown[few], RECIPE, seed=0)
    logits = net(latents[few])[:, 0]
    assert int(shown[few].sum()) == 5 and bool((logits[shown[few]] > 0).all())


def test_the_seed_alone_decides_and_no_gradient_is_left() -> None:
    latents, shown = planted(40)
    recipe = LatentRecipe(steps=5)
    once = train_latents(latents, shown, recipe, seed=1)
    torch.manual_seed(99)
    again, other = (train_latents(latents, shown, recipe, seed=seed) for seed in (1, 2))
    tensors = [(*net.weights, *net.biases) for net in (once, again, other)]
    assert all(map(torch.equal, tensors[0], tensors[1]))
    assert not any(map(torch.equal, tensors[0], tensors[2]))
    assert not any(tensor.requires_grad for tensor in tensors[0])


@pytest.mark.parametrize("label", [True, False])
def test_images_of_both_kinds_are_needed(label: bool) -> None:
    with pytest.raises(ValueError, match="with the concept and images without it"):
        train_latents(normal(10, CHANNELS, 8, 8), torch.full((10,), label), RECIPE, seed=0)


@pytest.mark.parametrize(
    ("size", "halvings", "places"),
    [
        ((4, 4), 1, 2 * 2),
        ((8, 8), 1, 4 * 4),
        ((16, 16), 1, GRID * GRID),
        ((17, 17), 2, 5 * 5),
        ((32, 8), 2, GRID * 2),
        ((8, 64), 3, 1 * GRID),
    ],
)
def test_the_grid_is_halved_until_it_is_small_enough(
    size: tuple[int, int], halvings: int, places: int
) -> None:
    latents = normal(4, 2, *size)
    shown = torch.tensor([True, False, True, False])
    net = train_latents(latents, shown, LatentRecipe(steps=1, batch=2), seed=0)
    assert len(net.weights) == 2 * halvings + 2
    with torch.no_grad():
        assert net._votes(latents).shape == (4, 1, places)


# -- batches ------------------------------------------------------------------------------------


def test_images_of_a_batch_are_shifted_together_by_a_few_places_at_most() -> None:
    batch = normal(3, 2, 9, 9)
    recipe, random = LatentRecipe(shift=2, noise=0.0), torch.Generator().manual_seed(0)
    shifts = set()
    for _ in range(200):
        moved = module._augmented(batch, recipe, random)
        inside = moved[:, :, 2:7, 2:7]
        (shift,) = [
            (down, right)
            for down in range(5)
            for right in range(5)
            if torch.equal(inside, batch[:, :, down : down + 5, right : right + 5])
        ]
        shifts.add(shift)
    assert len(shifts) == 25


def test_the_deviation_of_the_noise_varies_by_image_up_to_a_bound() -> None:
    recipe, random = LatentRecipe(shift=0, noise=0.5), torch.Generator().manual_seed(0)
    batch = normal(64, 4, 16, 16)
    deviations = (module._augmented(batch, recipe, random) - batch).flatten(1).std(1)
    assert float(deviations.max()) < 0.55 and float(deviations.max()) > 0.4
    assert float(deviations.min()) < 0.1


def test_a_batch_has_random_frames() -> None:
    videos = torch.arange(3.0).view(1, 1, 3, 1, 1).expand(64, 2, 3, 4, 4)
    frames = module._one_frame(videos, torch.Generator().manual_seed(0))
    assert frames.shape == (64, 2, 4, 4)
    assert set(frames.flatten().tolist()) == {0.0, 1.0, 2.0}
    assert torch.equal(frames, frames[:, :1, :1, :1].expand_as(frames))
