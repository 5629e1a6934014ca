"""What a denoiser sees in finished latents: its hidden states at its middle, and no further."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from steering.engines.diffusion.families import Family

SHARE = 0.06
"""Of the training timesteps: the picture is there, and the network still expects to work on it."""


class _Seen(Exception):
    """Ends a forward whose rest nobody needs."""


class Glimpse:
    """Looks at latents through the denoiser of `family`, under the empty prompt."""

    def __init__(self, family: Family) -> None:
        self._family = family
        with torch.no_grad():
            self._plain = family.encode([""])
        self._time = SHARE * float(family.scheduler.config.num_train_timesteps)

    def __call__(self, latents: Tensor) -> Tensor:
        """States `[rows, places, width]` of the family's `middle`; differentiable."""
        rows, found = len(latents), list[Tensor]()

        def look(_module: Any, _inputs: Any, output: Any) -> None:
            # blocks that carry the text along give it first
            found.append(output[-1] if isinstance(output, tuple) else output)
            raise _Seen

        times = torch.full((rows,), self._time, device=latents.device)
        guidance = torch.full((rows,), self._family.defaults[1], device=latents.device)
        handle = self._family.middle.register_forward_hook(look)
        try:
            self._family.predict(latents, times, self._plain.expand(rows), guidance)
        except _Seen:
            pass
        finally:
            handle.remove()
        if not found:
            raise RuntimeError("the denoiser did not come to its middle block")
        states = found[0]
        return states.flatten(2).transpose(1, 2) if states.ndim > 3 else states
