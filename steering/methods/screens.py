"""The methods of the embedding and guidance seams, by name: a new one is one line here."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from steering.methods import cgce, nearest, safe_guidance, safree
from steering.methods.embedding import EmbeddingGuard
from steering.prompted import Screen

Stack = Callable[[Sequence[EmbeddingGuard], torch.device | str], Screen]

SCREENS: dict[str, Stack] = {
    "cgce": cgce.stack,
    "nearest": nearest.stack,
    "negative-prompt": safe_guidance.stack_negative,
    "safe-guidance": safe_guidance.stack_safety,
    "safree": safree.stack,
}
"""Method → what stacks all of its guards on one model, one at least.

It raises ValueError where a guard does not hold, or where guards that hold cannot be stacked.
"""
