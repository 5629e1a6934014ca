"""The methods of picture models, by name: a new one is one line here."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from steering.erasing import Eraser
from steering.finished import PictureScreen
from steering.methods import cgce, irece, latents, nearest, safe_guidance, safree, uce
from steering.methods.embedding import EmbeddingGuard
from steering.prompted import Screen

Guards = Sequence[EmbeddingGuard]
Stack = Callable[[Guards, torch.device | str], Screen]

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

PICTURE_SCREENS: dict[str, Callable[[Guards, torch.device | str], PictureScreen]] = {
    "latents": latents.stack,
}
"""The same for methods that look at finished pictures."""

ERASERS: dict[str, Callable[[Guards, torch.device | str], Eraser]] = {
    "irece": irece.stack,
}
"""The same for methods that write to the latents of a picture on its way."""
