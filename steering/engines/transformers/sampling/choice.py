"""Sampling of all rows at once; the token of a row depends on its own seed and step alone."""

from __future__ import annotations

import torch
from torch import Tensor


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


def sample(
    logits: Tensor,
    temperature: Tensor,
    top_p: Tensor,
    uniforms: Tensor,
    *,
    top_k: Tensor | None = None,
    min_p: Tensor | None = None,
) -> Tensor:
    """Token ids `[rows]` from `logits [rows, vocabulary]`; the other arguments are `[rows]`.

    Rows with `temperature` 0 take the argmax; the others invert the cumulative distribution of
    what is kept at `uniforms` in [0, 1): the `top_k` likeliest tokens (0: all), of these the
    nucleus `top_p` (Holtzman et al. 2020), of these the tokens of at least `min_p` times the
    probability of the likeliest one (Nguyen et al. 2024). None stands for all zeros.
    """
    greedy = logits.argmax(-1)
    scaled = logits.float() / temperature.clamp(min=1e-5)[:, None]
    probability, order = scaled.softmax(-1).sort(dim=-1, descending=True, stable=True)
    mass = probability.cumsum(-1)
    kept = probability
    if top_k is not None:
        vocabulary = logits.shape[-1]
        rank = torch.arange(vocabulary, device=logits.device)
        last = torch.where(top_k > 0, top_k, vocabulary).clamp(max=vocabulary)[:, None] - 1
        kept = torch.where(rank <= last, kept, 0.0)
        top_p = top_p * torch.where(top_k > 0, mass.gather(-1, last)[:, 0], 1.0)
    if min_p is not None:
        kept = torch.where(probability >= min_p[:, None] * probability[:, :1], kept, 0.0)
    # the likeliest token is always kept, each other one while the mass before it is below top_p
    kept = torch.where(mass - probability < top_p[:, None], kept, 0.0)
    kept[:, 0] = probability[:, 0]
    cumulative = kept.double().cumsum(-1)
    target = uniforms[:, None] * cumulative[:, -1:]
    choice = torch.searchsorted(cumulative, target, right=True).clamp(max=logits.shape[-1] - 1)
    sampled = order.gather(-1, choice)[:, 0]
    return torch.where(temperature > 0, sampled, greedy)
