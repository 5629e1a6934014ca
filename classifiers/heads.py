"""Light classifiers on a text encoder's token states: CGCE's classifiers (arXiv 2511.05865).

A head has a few learned queries that attend over the tokens (cross-attention pooling) and a small
perceptron that gives the logit of p(concept). With the key projection folded into the queries, and
the value projection into the perceptron's first layer, it is

    a = softmax_t(E q_i),  z_i = Σ_t a_t E_t,  logit = w · gelu(W [z_1 ... z_k] + b) + c

Attention covers all tokens, padding too: a bidirectional encoder writes the concept there as well,
and the denoiser of most pipelines reads it. Heads of many concepts, and several members of one, are
stacked: one pass scores them all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True, eq=False)
class Heads:
    """Stacked heads on the states of one text encoder, float32.

    `queries [heads, k, width]`, `hidden [heads, k * width, d]`, `hidden_bias [heads, d]`,
    `out [heads, d]`, `out_bias [heads]`. Raises ValueError for other shapes.
    """

    queries: Tensor
    hidden: Tensor
    hidden_bias: Tensor
    out: Tensor
    out_bias: Tensor

    def __post_init__(self) -> None:
        heads, k, width = self.queries.shape
        d = self.out.shape[-1]
        shapes = {
            "hidden": (heads, k * width, d),
            "hidden_bias": (heads, d),
            "out": (heads, d),
            "out_bias": (heads,),
        }
        for name, shape in shapes.items():
            if tuple(getattr(self, name).shape) != shape:
                raise ValueError(f"{name} of heads on {k} queries of {width} must be {shape}")

    def __len__(self) -> int:
        return len(self.queries)

    def __call__(self, states: Tensor) -> Tensor:
        """Logits `[rows, heads]` of `states [rows, tokens, width]`, differentiable."""
        heads, k, width = self.queries.shape
        scores = states @ self.queries.reshape(heads * k, width).T
        pooled = scores.softmax(1).transpose(1, 2) @ states
        flat = pooled.reshape(-1, heads, k * width).transpose(0, 1)
        hidden = F.gelu(flat @ self.hidden + self.hidden_bias[:, None])
        logits: Tensor = (hidden * self.out[:, None]).sum(-1).T + self.out_bias
        return logits

    def parts(self) -> dict[str, Tensor]:
        """The tensors by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def select(self, heads: Tensor) -> Heads:
        """The heads of these indices."""
        return Heads(**{name: part[heads] for name, part in self.parts().items()})

    def to(self, device: torch.device | str) -> Heads:
        return Heads(**{name: part.to(device) for name, part in self.parts().items()})


PARTS = tuple(field.name for field in fields(Heads))


def stacked(heads: Sequence[Heads]) -> Heads:
    """Heads of several guards as one; smaller ones are padded with zeros, which change no logit.

    Raises ValueError for heads of different widths.
    """
    widths = {head.queries.shape[-1] for head in heads}
    if len(widths) > 1:
        raise ValueError(f"heads of different widths cannot be stacked: {sorted(widths)}")
    k = max(head.queries.shape[1] for head in heads)
    d = max(head.out.shape[-1] for head in heads)
    padded = [_padded(head, k, d) for head in heads]
    return Heads(**{name: torch.cat([parts[name] for parts in padded]) for name in PARTS})


def _padded(head: Heads, k: int, d: int) -> dict[str, Tensor]:
    _, head_k, width = head.queries.shape
    queries, units = k - head_k, d - head.out.shape[-1]
    return {
        "queries": F.pad(head.queries, (0, 0, 0, queries)),
        "hidden": F.pad(head.hidden, (0, units, 0, queries * width)),
        "hidden_bias": F.pad(head.hidden_bias, (0, units)),
        "out": F.pad(head.out, (0, units)),
        "out_bias": head.out_bias,
    }


def fresh(members: int, width: int, *, queries: int, hidden: int, seed: int) -> Heads:
    """Untrained heads, every member with random weights of its own."""
    random = torch.Generator().manual_seed(seed)

    def normal(*shape: int, scale: float) -> Tensor:
        return scale * torch.randn(*shape, generator=random)

    return Heads(
        queries=normal(members, queries, width, scale=width**-0.5),
        hidden=normal(members, queries * width, hidden, scale=(queries * width) ** -0.5),
        hidden_bias=torch.zeros(members, hidden),
        out=normal(members, hidden, scale=hidden**-0.5),
        out_bias=torch.zeros(members),
    )
