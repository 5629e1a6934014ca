"""The methods of image models, by name: a new one is one line here."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from steering.images.embedding import EmbeddingGuards
from steering.images.latent import LatentGuards
from steering.images.output import OutputGuards
from steering.methods import cgce, irece, latents, nearest, safe_guidance, safree, uce
from steering.methods.fitted import FittedGuard

Guards = Sequence[FittedGuard]
Stack = Callable[[Guards, torch.device | str], EmbeddingGuards]

SCREENS: dict[str, Stack] = {
    "cgce": cgce.stack,
    "nearest": nearest.stack,
    "negative-prompt": safe_guidance.stack_negative,
    "safe-guidance": safe_guidance.stack_safety,
    "safree": safree.stack,
    "uce": uce.stack,
}
"""Method of the embedding, the guidance or the projection seam → what stacks all of its guards.

There is one guard at least. It raises ValueError where a guard does not hold, or where guards that
hold cannot be stacked.
"""

IMAGE_SCREENS: dict[str, Callable[[Guards, torch.device | str], OutputGuards]] = {
    "latents": latents.stack,
}
"""The same for methods that look at finished images."""

ERASERS: dict[str, Callable[[Guards, torch.device | str], LatentGuards]] = {
    "irece": irece.stack,
}
"""The same for methods that write to the latents of an image on its way."""
