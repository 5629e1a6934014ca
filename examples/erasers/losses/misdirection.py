"""Representation misdirection (RMU, arXiv 2403.03218): states of what is to be forgotten go a
random way, those of the rest stay.

`L = |h(forget) - c u|² + α |h(retain) - h_bare(retain)|²` after one layer, with `u` random and `c`
a multiple of the size of the bare states, as in adaptive RMU (arXiv 2408.06223); both terms are in
units of that size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from examples.erasers.data import Batch
from examples.erasers.forwards import Forwards

LAYER = 12
SCALE = 3.0
ALPHA = 20.0


def loss(model: Forwards, forget: Batch, retain: Batch) -> tuple[Tensor, float]:
    """The loss, and the distance of what is to be forgotten from where it goes, in units of the
    bare states' size."""
    bare = model.bare_states(forget, LAYER)
    kept = model.bare_states(retain, LAYER)
    size = bare.norm(dim=-1).mean()
    random = torch.rand(bare.shape[-1], generator=torch.Generator().manual_seed(0))
    target = SCALE * size * random / random.norm()
    away = (model.states(forget, LAYER) - target).square().sum(-1).mean() / size**2
    held = (model.states(retain, LAYER) - kept).square().sum(-1).mean() / size**2
    return away + ALPHA * held, float(away.detach())
