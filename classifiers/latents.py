"""Convolutional classifiers of an image's latents: is the concept at any place of it.

    logit = log Σ_places exp(network(latents)_place)

One place that shows the concept is enough: the smooth form of multiple-instance learning's maximum,
taught with a label for the whole image. An autoencoder has done the hard part, so the networks
are small: 3 x 3 convolutions, every second one halving the grid until it has `GRID` places a side.
Classifiers of many concepts, and several members of one, are stacked: grouped convolutions score
them all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

GRID = 8
"""Places a side, at most, where the last layer votes."""
FIRST, WIDTH = 24, 32
"""Channels of the first layer, and of those behind it."""


@dataclass(frozen=True, eq=False)
class LatentClassifiers:
    """Stacked networks of one form, float32.

    `weights[i]` is `[members, out, in, 3, 3]`, the last `[members, 1, in, 1, 1]`; `biases[i]` is
    `[members, out]`. Layers 1, 3, 5 ... but the last halve the grid. Raises ValueError where they
    do not belong together.
    """

    weights: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]

    def __post_init__(self) -> None:
        if not self.weights or len(self.weights) != len(self.biases):
            raise ValueError("a classifier needs a bias for each of its weights")
        if any(weight.ndim != 5 for weight in self.weights):
            raise ValueError("a classifier's weight must be [members, out, in, height, width]")
        inside: tuple[int, ...] = tuple(self.weights[0].shape[2:3])
        for index, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            last = index == len(self.weights) - 1
            side, out = (1, 1) if last else (3, weight.shape[1])
            expected = (len(self), out, *inside, side, side)
            if tuple(weight.shape) != expected or tuple(bias.shape) != (len(self), out):
                raise ValueError(
                    f"layer {index} of a classifier must be {list(expected)} with a bias of "
                    f"{list(expected[:2])}, not {list(weight.shape)} and {list(bias.shape)}"
                )
            inside = (out,)

    def __len__(self) -> int:
        return len(self.weights[0])

    @property
    def channels(self) -> int:
        """Of the latents that they take."""
        return self.weights[0].shape[2]

    def __call__(self, latents: Tensor) -> Tensor:
        """Logits `[rows, members]` of `latents [rows, channels, (frames,) height, width]`.

        Differentiable. Raises ValueError for latents of another number of channels.
        """
        return self.votes(latents).flatten(2).logsumexp(2)

    def votes(self, latents: Tensor) -> Tensor:
        """Place by place, `[rows, members, frames, places]`: of what the logits are made.

        Raises as a call does.
        """
        if latents.ndim not in (4, 5) or latents.shape[1] != self.channels:
            raise ValueError(
                f"latents of {self.channels} channels are wanted, not {list(latents.shape)}"
            )
        frames = latents.shape[2] if latents.ndim == 5 else 1
        one = latents.transpose(1, 2).flatten(0, 1) if latents.ndim == 5 else latents
        apart = self._votes(one).view(len(latents), frames, len(self), -1)
        return apart.transpose(1, 2)

    def select(self, members: Sequence[int]) -> LatentClassifiers:
        """Some of them."""
        return LatentClassifiers(
            tuple(weight[list(members)] for weight in self.weights),
            tuple(bias[list(members)] for bias in self.biases),
        )

    def _votes(self, x: Tensor) -> Tensor:
        """`[images, members, places]`."""
        members, last = len(self), len(self.weights) - 1
        for index, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            groups = members if index else 1  # the first layer reads the same for all
            if index < last:
                # what is beyond the border is like the border: with zeros there, standardising
                # latents could not be folded into the first layer
                x = F.pad(x, (1, 1, 1, 1), mode="replicate")
            stride = 2 if index % 2 and index < last else 1
            x = F.conv2d(x, weight.flatten(0, 1), bias.flatten(), stride=stride, groups=groups)
            x = F.gelu(x) if index < last else x
        return x.flatten(2)


@dataclass(frozen=True)
class LatentRecipe:
    """How a classifier is trained: AdamW over `steps` batches of half with the concept, half
    without, the images moved by up to `shift` places, with noise of a deviation of up to `noise`
    of the latents' own, and labels smoothed by `smoothing`.

    Against who searches for latents that hide the concept, images with it are first moved by
    `hidden` at most to where the classifier finds least of it, in `hiding` steps of projected
    gradient descent (adversarial training, Madry et al., arXiv 1706.06083): root mean squares of
    the whole image, in deviations of the latents. 0 leaves that out.
    """

    steps: int = 500
    batch: int = 64
    rate: float = 3e-3
    decay: float = 0.02
    shift: int = 2
    noise: float = 0.3
    smoothing: float = 0.02
    hidden: float = 0.0
    hiding: int = 2


def train_latents(
    latents: Tensor, shown: Tensor, recipe: LatentRecipe, *, seed: int
) -> LatentClassifiers:
    """One classifier of `latents [n, channels, (frames,) height, width]` and labels `shown [n]`.

    The latents are standardised by a mean and deviation a channel, both folded into what comes
    back. Of a video, each batch sees a frame. Raises ValueError where one of the labels is missing.
    """
    sides = shown.nonzero()[:, 0], (~shown).nonzero()[:, 0]
    if not all(map(len, sides)):
        raise ValueError("a classifier is taught images with the concept and images without it")
    random = torch.Generator().manual_seed(seed)
    axes = (0, *range(2, latents.ndim))
    mean, deviation = latents.float().mean(axes), latents.float().std(axes)
    # a channel that never changes says nothing, and its rounding must not be made large
    deviation = deviation.where(deviation > 1e-5 * (1 + mean.abs()), 1.0)
    weights, biases = _fresh(latents.shape[1], max(latents.shape[-2:]), random)
    optimizer = torch.optim.AdamW(
        [{"params": weights, "weight_decay": recipe.decay}, {"params": biases, "weight_decay": 0.0}]
    )
    half = recipe.batch // 2
    labels = torch.tensor([1.0 - recipe.smoothing, recipe.smoothing]).repeat_interleave(half)
    for step in range(recipe.steps):
        # linear up over the first steps, half a cosine down
        warm = min(1.0, (step + 1) / 30)
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate * warm * 0.5 * (1 + math.cos(math.pi * step / recipe.steps))
        drawn = [side[torch.randint(len(side), (half,), generator=random)] for side in sides]
        batch = _one_frame(latents[torch.cat(drawn)].float(), random)
        batch = (batch - mean.view(-1, 1, 1)) / deviation.view(-1, 1, 1)
        batch = _moved(batch, recipe, random)
        network = LatentClassifiers(tuple(weights), tuple(biases))
        if recipe.hidden:
            batch[:half] = _hidden(network, batch[:half], recipe, random)
        said = network(batch)[:, 0]
        loss = F.binary_cross_entropy_with_logits(said, labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch has no types for it
        optimizer.step()
    with torch.no_grad():
        first = weights[0] / deviation.view(-1, 1, 1)
        bias = biases[0] - (first.sum((3, 4)) @ mean)
        return LatentClassifiers(
            (first, *(weight.detach() for weight in weights[1:])),
            (bias, *(bias.detach() for bias in biases[1:])),
        )


def stacked(each: Sequence[LatentClassifiers]) -> LatentClassifiers:
    """All of them in one. Raises ValueError where they are not of one form."""
    if len({tuple(weight.shape[1:] for weight in one.weights) for one in each}) != 1:
        raise ValueError("classifiers of latents of different shapes cannot be stacked")
    return LatentClassifiers(
        tuple(torch.cat(layer) for layer in zip(*(one.weights for one in each), strict=True)),
        tuple(torch.cat(layer) for layer in zip(*(one.biases for one in each), strict=True)),
    )


def _fresh(channels: int, side: int, random: torch.Generator) -> tuple[list[Tensor], list[Tensor]]:
    """A network before its training: as torch starts convolutions."""
    halvings = max(1, math.ceil(math.log2(side / GRID)))
    widths = [channels, FIRST, *[WIDTH] * (2 * halvings), 1]
    weights, biases = [], []
    for index, (inside, out) in enumerate(zip(widths, widths[1:], strict=False)):
        kernel = 1 if index == len(widths) - 2 else 3
        bound = 1 / math.sqrt(inside * kernel**2)
        shapes = (1, out, inside, kernel, kernel), (1, out)
        weight, bias = (
            (bound * (2 * torch.rand(shape, generator=random) - 1)).requires_grad_()
            for shape in shapes
        )
        weights.append(weight)
        biases.append(bias)
    with torch.no_grad():
        # most places of an image do not show it
        biases[-1] -= 3.0
    return weights, biases


def _one_frame(batch: Tensor, random: torch.Generator) -> Tensor:
    if batch.ndim == 4:
        return batch
    frame = torch.randint(batch.shape[2], (len(batch),), generator=random)
    return batch[torch.arange(len(batch)), :, frame]


def _moved(batch: Tensor, recipe: LatentRecipe, random: torch.Generator) -> Tensor:
    """The batch as a whole a few places aside, and noise of another deviation for each image."""
    height, width = batch.shape[2:]
    edge = recipe.shift
    down, right = torch.randint(2 * edge + 1, (2,), generator=random).tolist()
    wide = F.pad(batch, (edge, edge, edge, edge), mode="replicate")
    moved = wide[:, :, down : down + height, right : right + width]
    spread = recipe.noise * torch.rand(len(batch), 1, 1, 1, generator=random)
    return moved + spread * torch.randn(moved.shape, generator=random)


def _hidden(
    network: LatentClassifiers, batch: Tensor, recipe: LatentRecipe, random: torch.Generator
) -> Tensor:
    """The batch, moved to where the network finds least, by up to another length each."""
    size = math.sqrt(batch[0].numel()) * recipe.hidden
    most = size * torch.rand(len(batch), 1, 1, 1, generator=random)
    away = torch.zeros_like(batch)
    for _ in range(recipe.hiding):
        away.requires_grad_()
        (slope,) = torch.autograd.grad(network(batch + away).sum(), away)
        step = slope / _length(slope).clamp(min=1e-12) * most * (1.5 / recipe.hiding)
        away = (away - step).detach()
        away = away * (most / _length(away).clamp(min=1e-12)).clamp(max=1.0)
    return batch + away


def _length(batch: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(batch.flatten(1), dim=1)
    return norms.view(-1, 1, 1, 1)
