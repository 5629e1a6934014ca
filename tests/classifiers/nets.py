"""Random latents, and classifiers of latents with random weights, no two alike."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from classifiers.latents import LatentClassifiers


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def random_net(
    members: int, channels: int, *, hidden: Sequence[int] = (3, 5), seed: int = 0
) -> LatentClassifiers:
    """A network of a 3 x 3 layer for each number in `hidden`, and the layer that votes."""
    random = torch.Generator().manual_seed(seed)
    widths = [channels, *hidden, 1]
    weights, biases = [], []
    for index, (inside, out) in enumerate(pairwise(widths)):
        side = 3 if index < len(hidden) else 1
        spread = 2.0 / (inside * side**2) ** 0.5
        weights.append(spread * torch.randn(members, out, inside, side, side, generator=random))
        biases.append(0.5 * torch.randn(members, out, generator=random))
    return LatentClassifiers(tuple(weights), tuple(biases))


def tensors_of(net: LatentClassifiers) -> dict[str, NDArray[Any]]:
    """The tensors under their names in an artifact."""
    named = {"weight": net.weights, "bias": net.biases}
    return {
        f"{kind}{index}.latents": tensor.numpy()
        for kind, tensors in named.items()
        for index, tensor in enumerate(tensors)
    }
