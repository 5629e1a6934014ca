"""Subspaces of the residual stream that the prompts of a subject span, and those of others do not.

States are `[prompts, layers, width]`, one for each prompt: the mean over its tokens behind what all
prompts begin with, or that of its last token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from guard.models.chat import ChatModel
from guard.reporting.progress import Stages
from steering.prompt import Prompt, shared_prefix

BOOTSTRAPS = 50


class PromptStates(NamedTuple):
    """`mean` over a prompt's own tokens, and of its `last` token, `[prompts, layers, width]`."""

    mean: Tensor
    last: Tensor


def read(chat: ChatModel, prompts: Sequence[Prompt], stage: str, progress: Stages) -> PromptStates:
    """The states after all decoder layers, float32."""
    shared = max(shared_prefix(prompts), 1)
    mean = torch.zeros(len(prompts), chat.depth, chat.width)
    last = torch.zeros_like(mean)
    advance = progress(stage, len(prompts))
    for i, states in chat.states(prompts, range(chat.depth), advance):
        mean[i], last[i] = _own(states, shared).mean(0), states[-1]
    return PromptStates(mean, last)


def spanned(forget: Tensor, retain: Tensor, rank: int) -> Tensor:
    """Orthonormal directions `[layers, rank, width]`: the difference of the means, and the
    principal ones of what is left of the forget states around the mean of the others."""
    away = (forget - retain.mean(0)).movedim(1, 0)
    first = away.mean(1, keepdim=True)
    first = first / first.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    left = away - (away @ first.mT) @ first
    others = torch.linalg.svd(left, full_matrices=False).Vh[:, : rank - 1]
    # Gram-Schmidt once more: the residual is orthogonal to the first up to rounding
    basis: Tensor = torch.linalg.qr(torch.cat([first, others], 1).mT).Q.mT
    return basis


def separation(forget: Tensor, retain: Tensor, seed: int = 0) -> Tensor:
    """Cohen's d `[layers]` of the two kinds of prompts along the difference of their means in
    standardised features: the mean over bootstraps, of prompts that are not drawn."""
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros(forget.shape[1])
    for _ in range(BOOTSTRAPS):
        (f, f_out), (r, r_out) = (_drawn(part, generator) for part in (forget, retain))
        signature = standardised(f, r)
        a, b = ((part * signature).sum(-1) for part in (f_out, r_out))
        spread = ((a.var(0) + b.var(0)) / 2).sqrt()
        total += (a.mean(0) - b.mean(0)) / spread.clamp(min=1e-12)
    return total / BOOTSTRAPS


def standardised(forget: Tensor, retain: Tensor) -> Tensor:
    """`v / σ [layers, width]`: with features divided by their deviation on the retain prompts, the
    difference of the means, of unit length, as it reads plain states."""
    deviation = retain.std(0).clamp(min=1e-6)
    difference = (forget.mean(0) - retain.mean(0)) / deviation
    signature: Tensor = difference / difference.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    return signature / deviation


def levels(
    chat: ChatModel, prompts: Sequence[Prompt], directions: Tensor, progress: Stages
) -> Tensor:
    """Mean and deviation `[layers, 2]` of the size of the part of a token's state in `directions
    [layers, rank, width]`, over the own tokens of prompts: guards act token by token, and the mean
    state of a prompt has less of it."""
    shared = max(shared_prefix(prompts), 1)
    advance = progress("measuring directions", len(prompts))
    sizes = [
        torch.einsum("tlw,lrw->tlr", _own(states, shared), directions).norm(dim=-1)
        for _, states in chat.states(prompts, range(chat.depth), advance)
    ]
    tokens = torch.cat(sizes)
    return torch.stack([tokens.mean(0), tokens.std(0).clamp(min=1e-6)], -1)


def _own(states: Tensor, shared: int) -> Tensor:
    """The tokens of a prompt behind what all begin with; the last one where there is no other."""
    return states[shared:] if len(states) > shared else states[-1:]


def _drawn(states: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """As many prompts as there are, drawn with replacement, and those that were not drawn."""
    drawn = torch.randint(len(states), (len(states),), generator=generator)
    rest = torch.ones(len(states), dtype=torch.bool)
    rest[drawn] = False
    return states[drawn], states[rest] if int(rest.sum()) > 1 else states
