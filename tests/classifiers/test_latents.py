"""Logits and shapes of the classifiers of latents."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from classifiers.latents import LatentClassifiers, stacked
from tests.classifiers.nets import normal, random_net

Tensors = Sequence[Tensor]


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
