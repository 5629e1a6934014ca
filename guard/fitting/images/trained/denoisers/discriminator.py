"""A discriminator of clean latents, patch by patch (PatchGAN, arXiv 1611.07004)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from guard.fitting.resuming import ResumableAdam

_WIDTH = 64
_ANCHOR, _TARGET = 0.0, 1.0


class Discriminator:
    """Tells the bare model's latents of anchor prompts (0) from those of the changed model's target
    prompts (1). Its weights come from `generator`."""

    def __init__(
        self, channels: int, rate: float, device: torch.device, generator: torch.Generator
    ) -> None:
        self._network = nn.Sequential(
            nn.Conv2d(channels, _WIDTH, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(_WIDTH, 2 * _WIDTH, 4, stride=2, padding=1),
            nn.GroupNorm(8, 2 * _WIDTH),
            nn.LeakyReLU(0.2),
            nn.Conv2d(2 * _WIDTH, 1, 3, padding=1),
        )
        with torch.no_grad():
            for module in self._network:
                if isinstance(module, nn.Conv2d):
                    module.weight.normal_(0.0, 0.02, generator=generator)
                    module.bias.zero_()  # type: ignore[union-attr]
        self._network.to(device)
        parameters = [*self._network.parameters()]
        self._optimiser = torch.optim.Adam(parameters, lr=rate, betas=(0.5, 0.999))

    def learn(self, anchor: Tensor, target: Tensor) -> float:
        """One update on latents `[rows, channels, height, width]` of both; its loss."""
        with torch.enable_grad():
            loss = self._error(anchor.detach(), _ANCHOR) + self._error(target.detach(), _TARGET)
            parameters = [*self._network.parameters()]
            for parameter, gradient in zip(
                parameters, torch.autograd.grad(loss, parameters), strict=True
            ):
                parameter.grad = gradient
        self._optimiser.step()
        return float(loss.detach())

    def passing(self, target: Tensor) -> Tensor:
        """The loss of target latents that are to pass as anchors, a scalar."""
        return self._error(target, _ANCHOR)

    def state(self) -> dict[str, Tensor]:
        """See `guard.fitting.resuming.Resumable`."""
        moments = ResumableAdam(self._optimiser).state()
        return {
            **{f"weights.{name}": tensor for name, tensor in self._network.state_dict().items()},
            **{f"adam.{name}": tensor for name, tensor in moments.items()},
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """See `guard.fitting.resuming.Resumable`."""
        parts: dict[str, dict[str, Tensor]] = {"weights": {}, "adam": {}}
        for key, tensor in state.items():
            part, _, name = key.partition(".")
            parts[part][name] = tensor
        self._network.load_state_dict(parts["weights"])
        ResumableAdam(self._optimiser).restore(parts["adam"])

    def _error(self, latents: Tensor, label: float) -> Tensor:
        logits = self._network(latents.float())
        return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, label))
