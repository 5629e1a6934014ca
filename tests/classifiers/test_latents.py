"""Classifiers of latents: their logits, their shapes, their training."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from classifiers import latents as module
from classifiers.latents import GRID, LatentClassifiers, LatentRecipe, stacked, train_latents
from tests.classifiers.nets import random_net

CHANNELS = 8
RECIPE = LatentRecipe(steps=60, batch=32, rate=1e-2)
Tensors = Sequence[Tensor]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def reference_network(net: LatentClassifiers, member: int) -> nn.Sequential:
    """One member, made of torch's modules."""
    layers: list[nn.Module] = []
    last = len(net.weights) - 1
    for index, (weight, bias) in enumerate(zip(net.weights, net.biases, strict=True)):
        out, inside, side, _ = weight[member].shape
        convolution = nn.Conv2d(
            inside,
            out,
            side,
            2 if index in {1, 3} - {last} else 1,
            side // 2,
            padding_mode="replicate",
        )
        with torch.no_grad():
            convolution.weight.copy_(weight[member])
            convolution.bias.copy_(bias[member])  # type: ignore[union-attr]
        layers += [convolution] if index == last else [convolution, nn.GELU()]
    return nn.Sequential(*layers)


def reference_logit(network: nn.Sequential, frames: Tensor) -> float:
    """The logit of an image or video, `frames [frames, channels, height, width]`."""
    with torch.no_grad():
        votes = [float(vote) for frame in frames for vote in network(frame[None]).flatten()]
    return math.log(sum(map(math.exp, votes)))


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


# -- logits -------------------------------------------------------------------------------------


@pytest.mark.parametrize("hidden", [(), (4,), (3, 5), (3, 4, 2), (3, 4, 2, 3)])
@pytest.mark.parametrize("size", [(8, 8), (7, 10), (1, 5)])
def test_logits_are_those_of_each_network_by_itself(
    hidden: Sequence[int], size: tuple[int, int]
) -> None:
    if hidden:
        net = random_net(3, 6, hidden=hidden)
    else:
        net = LatentClassifiers((normal(3, 1, 6, 1, 1),), (normal(3, 1, seed=1),))
    latents = normal(4, 6, *size, seed=2)
    logits = net(latents)
    assert logits.shape == (4, 3) and len(net) == 3 and net.channels == 6
    for member in range(3):
        network = reference_network(net, member)
        expected = [reference_logit(network, image[None]) for image in latents]
        assert logits[:, member].tolist() == pytest.approx(expected, abs=1e-4)


def test_every_place_of_every_frame_of_a_video_has_a_vote() -> None:
    net, videos = random_net(2, 6), normal(3, 6, 5, 8, 6)
    logits = net(videos)
    assert logits.shape == (3, 2)
    for member in range(2):
        network = reference_network(net, member)
        expected = [reference_logit(network, video.transpose(0, 1)) for video in videos]
        assert logits[:, member].tolist() == pytest.approx(expected, abs=1e-4)


def test_a_video_of_one_frame_is_an_image() -> None:
    net, latents = random_net(2, 6), normal(3, 6, 8, 8)
    assert torch.allclose(net(latents[:, :, None]), net(latents), atol=1e-5)


def test_one_place_that_shows_it_is_enough() -> None:
    center = torch.zeros(1, 1, 2, 3, 3)
    center[0, 0, 0, 1, 1] = 1.0
    net = LatentClassifiers(
        (center, torch.full((1, 1, 1, 1, 1), 2.0)), (torch.zeros(1, 1), torch.full((1, 1), -12.0))
    )
    shown = torch.zeros(64, 2, 8, 8)
    for place in range(64):
        shown[place, 0, place // 8, place % 8] = 8.0
    absent, present = net(torch.zeros(1, 2, 8, 8)), net(shown)
    # a mean over places would stay under zero
    assert float(absent) < -5 and bool((present > 3.9).all())
    assert torch.allclose(present, present[:1].expand(64, 1))


def test_members_do_not_influence_each_other() -> None:
    net, latents = random_net(3, 6, hidden=(3, 4, 2)), normal(4, 6, 8, 8)
    together = net(latents)
    other = random_net(3, 6, hidden=(3, 4, 2), seed=5)
    mixed = LatentClassifiers(
        tuple(torch.cat([w[:1], o[1:]]) for w, o in zip(net.weights, other.weights, strict=True)),
        tuple(torch.cat([b[:1], o[1:]]) for b, o in zip(net.biases, other.biases, strict=True)),
    )
    logits = mixed(latents)
    assert torch.allclose(logits[:, 0], together[:, 0], atol=1e-5)
    assert not torch.allclose(logits[:, 1:], together[:, 1:], atol=1e-2)


def test_rows_do_not_influence_each_other() -> None:
    net, latents = random_net(2, 6), normal(3, 6, 8, 8)
    together = net(latents)
    latents[1, 2, 3, 3] = torch.nan
    apart = net(latents)
    assert torch.equal(apart[[0, 2]], together[[0, 2]]) and bool(apart[1].isnan().all())


@pytest.mark.parametrize("members", [[1], [2, 0], [0, 1, 2], [1, 1]])
def test_selected_members_keep_their_logits(members: list[int]) -> None:
    net, latents = random_net(3, 6), normal(4, 6, 8, 8)
    selected = net.select(members)
    assert len(selected) == len(members)
    assert torch.allclose(selected(latents), net(latents)[:, members], atol=1e-5)


def test_stacked_networks_give_the_logits_of_each() -> None:
    nets, latents = [random_net(n, 6, seed=n) for n in (2, 1, 3)], normal(4, 6, 8, 8)
    whole = stacked(nets)
    assert len(whole) == 6
    assert torch.allclose(whole(latents), torch.cat([net(latents) for net in nets], 1), atol=1e-5)


@pytest.mark.parametrize(
    "other",
    [
        random_net(2, 7),
        random_net(2, 6, hidden=(3, 4)),
        random_net(2, 6, hidden=(3, 5, 5)),
        random_net(2, 6, hidden=(3,)),
    ],
)
def test_networks_of_different_shapes_cannot_be_stacked(other: LatentClassifiers) -> None:
    with pytest.raises(ValueError, match="different shapes cannot be stacked"):
        stacked([random_net(2, 6), other])


def test_logits_of_any_size_are_finite() -> None:
    assert bool(random_net(2, 6)(1e4 * normal(2, 6, 8, 8)).isfinite().all())


@pytest.mark.parametrize("frames", [(), (3,)])
def test_gradients_reach_the_latents(frames: tuple[int, ...]) -> None:
    latents = normal(3, 6, *frames, 8, 8).requires_grad_()
    (slope,) = torch.autograd.grad(random_net(2, 6)(latents)[:2].sum(), latents)
    norms = slope.flatten(1).norm(dim=1)
    assert bool((norms[:2] > 0).all()) and not norms[2]
    by_place = slope[0].abs().sum(0)
    assert bool((by_place > 0).all()), "every place and frame has a gradient"


# -- shapes -------------------------------------------------------------------------------------

WEIGHTS = (torch.zeros(2, 3, 6, 3, 3), torch.zeros(2, 5, 3, 3, 3), torch.zeros(2, 1, 5, 1, 1))
BIASES = (torch.zeros(2, 3), torch.zeros(2, 5), torch.zeros(2, 1))


def changed(layers: Tensors, index: int, *shape: int) -> Tensors:
    return (*layers[:index], torch.zeros(shape), *layers[index + 1 :])


@pytest.mark.parametrize(
    ("weights", "biases", "message"),
    [
        ((), (), "a bias for each"),
        (WEIGHTS, BIASES[:2], "a bias for each"),
        (WEIGHTS[:2], BIASES[:2], "layer 1"),
        (changed(WEIGHTS, 0, 2, 3, 6, 5, 5), BIASES, "layer 0"),
        (changed(WEIGHTS, 0, 2, 3, 6, 3), BIASES, "must be .members, out, in"),
        (changed(WEIGHTS, 1, 2, 5, 4, 3, 3), BIASES, "layer 1"),
        (changed(WEIGHTS, 1, 3, 5, 3, 3, 3), BIASES, "layer 1"),
        (changed(WEIGHTS, 1, 2, 5, 3, 1, 1), BIASES, "layer 1"),
        (changed(WEIGHTS, 2, 2, 2, 5, 1, 1), BIASES, "layer 2"),
        (changed(WEIGHTS, 2, 2, 1, 5, 3, 3), BIASES, "layer 2"),
        (WEIGHTS, changed(BIASES, 0, 3), "layer 0"),
        (WEIGHTS, changed(BIASES, 1, 2, 4), "layer 1"),
        (WEIGHTS, changed(BIASES, 2, 1, 1), "layer 2"),
    ],
)
def test_shapes_that_do_not_belong_together_are_refused(
    weights: Tensors, biases: Tensors, message: str
) -> None:
    LatentClassifiers(WEIGHTS, BIASES)
    with pytest.raises(ValueError, match=message):
        LatentClassifiers(tuple(weights), tuple(biases))


@pytest.mark.parametrize("shape", [(2, 5, 8, 8), (2, 7, 8, 8), (2, 5, 6, 8, 8), (6, 8, 8), (6,)])
def test_latents_of_another_number_of_channels_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="latents must have 6 channels, not"):
        random_net(2, 6)(torch.zeros(shape))


# -- training -----------------------------------------------------------------------------------


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
