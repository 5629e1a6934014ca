"""Convolutional classifiers of an image's latents: is the concept at any place of the image.

    logit = log Σ_places exp(network(latents)_place)

One place that shows the concept is enough: the smooth form of multiple-instance learning's maximum,
trained with a label for the whole image. The autoencoder has done the hard part, so the networks
are small: 3 x 3 convolutions, of which every second one halves the grid until it has `GRID` places
per side. Classifiers of many concepts, and several members of one, are stacked: grouped
convolutions compute all scores.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

GRID = 8
"""The most places per side of the grid on which the last layer votes."""
FIRST_WIDTH, WIDTH = 24, 32
"""Channels of the first layer, and of those behind it."""


@dataclass(frozen=True, eq=False)
class LatentClassifiers:
    """Stacked networks of one shape, float32.

    `weights[i]` is `[members, out, in, 3, 3]`, the last `[members, 1, in, 1, 1]`; `biases[i]` is
    `[members, out]`. Layers 1, 3, 5 ... halve the grid, except the last layer. Raises ValueError
    where the shapes do not belong together.
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
        """Channels of the latents."""
        return self.weights[0].shape[2]

    def __call__(self, latents: Tensor) -> Tensor:
        """Logits `[rows, members]` of `latents [rows, channels, (frames,) height, width]`.

        Differentiable. Raises ValueError for latents of another number of channels.
        """
        return self.votes(latents).flatten(2).logsumexp(2)

    def votes(self, latents: Tensor) -> Tensor:
        """Scores of every place, `[rows, members, frames, places]`, of which the logits are made.

        Raises as a call does.
        """
        if latents.ndim not in (4, 5) or latents.shape[1] != self.channels:
            raise ValueError(
                f"latents must have {self.channels} channels, not the shape {list(latents.shape)}"
            )
        frames = latents.shape[2] if latents.ndim == 5 else 1
        images = latents.transpose(1, 2).flatten(0, 1) if latents.ndim == 5 else latents
        votes = self._votes(images).view(len(latents), frames, len(self), -1)
        return votes.transpose(1, 2)

    def select(self, members: Sequence[int]) -> LatentClassifiers:
        """The members of these indices."""
        return LatentClassifiers(
            tuple(weight[list(members)] for weight in self.weights),
            tuple(bias[list(members)] for bias in self.biases),
        )

    def _votes(self, x: Tensor) -> Tensor:
        """Scores of every place of single frames, `[images, members, places]`."""
        members, last = len(self), len(self.weights) - 1
        for index, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            groups = members if index else 1  # the first layer has the same input for all
            if index < last:
                # replicate the border: with zeros beyond it, the standardisation of the latents
                # could not be folded into the first layer
                x = F.pad(x, (1, 1, 1, 1), mode="replicate")
            stride = 2 if index % 2 and index < last else 1
            x = F.conv2d(x, weight.flatten(0, 1), bias.flatten(), stride=stride, groups=groups)
            x = F.gelu(x) if index < last else x
        return x.flatten(2)


@dataclass(frozen=True)
class LatentRecipe:
    """How a classifier is trained.

    AdamW over `steps` batches, half with the concept, half without. The images are shifted by up to
    `shift` places, get noise of a deviation of up to `noise` times that of the latents, and labels
    smoothed by `smoothing`.

    Against attacks that search for latents which hide the concept, images with it are moved by up
    to `attack_radius` to where the classifier scores lowest, in `attack_steps` steps of projected
    gradient descent (adversarial training, Madry et al., arXiv 1706.06083). The radius is a root
    mean square over the whole image, in deviations of the latents; 0 leaves the attack out.
    """

    steps: int = 500
    batch: int = 64
    rate: float = 3e-3
    decay: float = 0.02
    shift: int = 2
    noise: float = 0.3
    smoothing: float = 0.02
    attack_radius: float = 0.0
    attack_steps: int = 2


def train_latents(
    latents: Tensor, shown: Tensor, recipe: LatentRecipe, *, seed: int
) -> LatentClassifiers:
    """One classifier of `latents [n, channels, (frames,) height, width]` and labels `shown [n]`.

    The latents are standardised by a mean and deviation per channel, both folded into the returned
    network. A batch holds one random frame of each video. Raises ValueError unless both labels
    occur.
    """
    sides = shown.nonzero()[:, 0], (~shown).nonzero()[:, 0]
    if not all(map(len, sides)):
        raise ValueError("a classifier needs images with the concept and images without it")
    random = torch.Generator().manual_seed(seed)
    axes = (0, *range(2, latents.ndim))
    mean, deviation = latents.float().mean(axes), latents.float().std(axes)
    # a constant channel holds no information, and its rounding errors must not be scaled up
    deviation = deviation.where(deviation > 1e-5 * (1 + mean.abs()), 1.0)
    weights, biases = _untrained(latents.shape[1], max(latents.shape[-2:]), random)
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
        chosen = [side[torch.randint(len(side), (half,), generator=random)] for side in sides]
        batch = _one_frame(latents[torch.cat(chosen)].float(), random)
        batch = (batch - mean.view(-1, 1, 1)) / deviation.view(-1, 1, 1)
        batch = _augmented(batch, recipe, random)
        network = LatentClassifiers(tuple(weights), tuple(biases))
        if recipe.attack_radius:
            batch[:half] = _attacked(network, batch[:half], recipe, random)
        logits = network(batch)[:, 0]
        loss = F.binary_cross_entropy_with_logits(logits, labels)
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


def stacked(networks: Sequence[LatentClassifiers]) -> LatentClassifiers:
    """All members of several networks in one. Raises ValueError for networks of unlike shapes."""
    if len({tuple(weight.shape[1:] for weight in net.weights) for net in networks}) != 1:
        raise ValueError("classifiers of latents of different shapes cannot be stacked")
    return LatentClassifiers(
        tuple(torch.cat(layer) for layer in zip(*(net.weights for net in networks), strict=True)),
        tuple(torch.cat(layer) for layer in zip(*(net.biases for net in networks), strict=True)),
    )


def _untrained(
    channels: int, side: int, random: torch.Generator
) -> tuple[list[Tensor], list[Tensor]]:
    """Weights and biases before the training, as torch initialises convolutions."""
    halvings = max(1, math.ceil(math.log2(side / GRID)))
    widths = [channels, FIRST_WIDTH, *[WIDTH] * (2 * halvings), 1]
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
        # most places of an image do not show the concept
        biases[-1] -= 3.0
    return weights, biases


def _one_frame(batch: Tensor, random: torch.Generator) -> Tensor:
    if batch.ndim == 4:
        return batch
    frame = torch.randint(batch.shape[2], (len(batch),), generator=random)
    return batch[torch.arange(len(batch)), :, frame]


def _augmented(batch: Tensor, recipe: LatentRecipe, random: torch.Generator) -> Tensor:
    """The batch shifted as a whole by a few places, with noise of a deviation per image."""
    height, width = batch.shape[2:]
    edge = recipe.shift
    down, right = torch.randint(2 * edge + 1, (2,), generator=random).tolist()
    padded = F.pad(batch, (edge, edge, edge, edge), mode="replicate")
    shifted = padded[:, :, down : down + height, right : right + width]
    spread = recipe.noise * torch.rand(len(batch), 1, 1, 1, generator=random)
    return shifted + spread * torch.randn(shifted.shape, generator=random)


def _attacked(
    network: LatentClassifiers, batch: Tensor, recipe: LatentRecipe, random: torch.Generator
) -> Tensor:
    """The batch, every image moved by up to a random length to where the network scores lowest."""
    size = math.sqrt(batch[0].numel()) * recipe.attack_radius
    most = size * torch.rand(len(batch), 1, 1, 1, generator=random)
    offset = torch.zeros_like(batch)
    for _ in range(recipe.attack_steps):
        offset.requires_grad_()
        (slope,) = torch.autograd.grad(network(batch + offset).sum(), offset)
        step = slope / _length(slope).clamp(min=1e-12) * most * (1.5 / recipe.attack_steps)
        offset = (offset - step).detach()
        offset = offset * (most / _length(offset).clamp(min=1e-12)).clamp(max=1.0)
    return batch + offset


def _length(batch: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(batch.flatten(1), dim=1)
    return norms.view(-1, 1, 1, 1)
