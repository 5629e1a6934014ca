"""Sampling of all rows at once; the token of a row depends on its own seed and step alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class RowSampling:
    """`temperature` 0 is greedy. `top_logprobs` None stands for no log-probabilities; `scored` are
    tokens whose log-probabilities are wanted at each step."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    top_logprobs: int | None = None
    scored: tuple[int, ...] = ()


def uniform(seeds: Tensor, steps: Tensor) -> Tensor:
    """One number in [0, 1) for each (seed, step), both int64 `[rows]`; float64 `[rows]`.

    A counter-based generator (the finaliser of SplitMix64, Steele et al. 2014, on 31-bit halves):
    it needs no generator object for each row, and the batch that a row runs in cannot change its
    numbers.
    """
    mask = 0x7FFFFFFF
    x = (seeds & mask) * 0x9E3779B1 + ((seeds >> 31) & mask) * 0x85EBCA77 + steps * 0xC2B2AE3D
    for multiplier in (0x7FEB352D, 0x846CA68B, 0x9E3779B1):
        x = x & 0xFFFFFFFF
        x = ((x ^ (x >> 16)) * multiplier) & 0xFFFFFFFF
    x = x ^ (x >> 15)
    return x.double() / 2.0**32


def sample(logits: Tensor, temperature: Tensor, top_p: Tensor, uniforms: Tensor) -> Tensor:
    """Token ids `[rows]` from `logits [rows, vocabulary]`; the other arguments are `[rows]`.

    Rows with `temperature` 0 take the argmax; the others invert the cumulative distribution of
    the nucleus `top_p` (Holtzman et al. 2020) at `uniforms` in [0, 1).
    """
    greedy = logits.argmax(-1)
    if not bool((temperature > 0).any()):
        return greedy
    scaled = logits.float() / temperature.clamp(min=1e-5)[:, None]
    probability, order = scaled.softmax(-1).sort(dim=-1, descending=True, stable=True)
    mass = probability.cumsum(-1)
    # the likeliest token is always kept, each other one while the mass before it is below top_p
    kept = torch.where(mass - probability < top_p[:, None], probability, 0.0)
    kept[:, 0] = probability[:, 0]
    cumulative = kept.double().cumsum(-1)
    target = uniforms[:, None] * cumulative[:, -1:]
    choice = torch.searchsorted(cumulative, target, right=True).clamp(max=logits.shape[-1] - 1)
    sampled = order.gather(-1, choice)[:, 0]
    return torch.where(temperature > 0, sampled, greedy)
