"""What is trained of a model: differences of some linear layers' weights, `W + ΔW`.

A difference is a parametrisation of its layer, so that forwards and gradients are torch's; switched
off, the model is the one that it was.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils import parametrize


class Difference(nn.Module):
    """`W + ΔW`; with a `rank`, `ΔW = B A` with `B` zero at first (LoRA, arXiv 2106.09685)."""

    def __init__(self, linear: nn.Linear, rank: int | None) -> None:
        super().__init__()
        out, width = linear.weight.shape
        self.on = True
        if rank is None:
            self.full = nn.Parameter(torch.zeros(out, width))
        else:
            self.read = nn.Parameter(torch.randn(rank, width) / width**0.5)
            self.write = nn.Parameter(torch.zeros(out, rank))

    @property
    def delta(self) -> Tensor:
        """`ΔW [out, in]`."""
        return self.full if hasattr(self, "full") else self.write @ self.read

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.delta if self.on else weight


class Differences:
    """Differences of the linear layers of `model` whose paths match one of `names` at `layers`.

    Decoder layers whose differences are zero are not written.
    """

    def __init__(
        self, model: nn.Module, names: Sequence[str], layers: range, rank: int | None
    ) -> None:
        model.requires_grad_(False)
        ends = "|".join(names)
        wanted = re.compile(rf"model\.layers\.(\d+)\..*\.({ends})")
        linears = {
            path: module
            for path, module in model.named_modules()
            if (match := wanted.fullmatch(path)) and int(match[1]) in layers
        }
        self.rank = rank
        self.by_path: dict[str, Difference] = {}
        torch.manual_seed(0)
        for path, linear in linears.items():
            assert isinstance(linear, nn.Linear)
            self.by_path[path] = Difference(linear, rank)
            # unsafe: the differences of a checkpoint are no change of shape or type
            parametrize.register_parametrization(linear, "weight", self.by_path[path], unsafe=True)
        self.module = nn.ModuleList(self.by_path.values())
        self._linears: Mapping[str, Any] = linears

    @property
    def linears(self) -> Sequence[nn.Linear]:
        """The layers, in the order of `by_path`."""
        return [*self._linears.values()]

    def by_layer(self) -> dict[int, list[Difference]]:
        """Those of each decoder layer."""
        found: dict[int, list[Difference]] = {}
        for path, each in self.by_path.items():
            found.setdefault(layer_of(path), []).append(each)
        return found

    @torch.no_grad()
    def shrink(self, amount: float) -> None:
        """Shorten the parameters of each decoder layer, as one vector, by `amount`; a layer that is
        no longer than that becomes zero, and stays it: the proximal step of a group lasso."""
        for group in self.by_layer().values():
            values = [p for each in group for p in each.parameters()]
            size = torch.stack([value.norm() for value in values]).norm()
            share = (1.0 - amount / size.clamp(min=1e-30)).clamp(min=0.0)
            for value in values:
                value.mul_(share)

    @torch.no_grad()
    def silent(self) -> list[int]:
        """The decoder layers whose differences are zero, which are not written."""
        return [
            layer
            for layer, group in self.by_layer().items()
            if not any(bool(each.delta.any()) for each in group)
        ]

    @contextmanager
    def off(self) -> Iterator[None]:
        """Run the model without them."""
        for each in self.by_path.values():
            each.on = False
        try:
            yield
        finally:
            for each in self.by_path.values():
                each.on = True

    @torch.no_grad()
    def save(self, folder: Path, base: str) -> None:
        """With a rank as a PEFT adapter, else the changed weights, `model.safetensors`."""
        folder.mkdir(parents=True, exist_ok=True)
        silent = {*self.silent()}
        written = [path for path in self.by_path if layer_of(path) not in silent]
        if self.rank is None:
            weights = {
                f"{path}.weight": self._linears[path].weight.contiguous() for path in written
            }
            save_file(weights, folder / "model.safetensors")
            return
        factors = {}
        for path in written:
            each = self.by_path[path]
            factors[f"base_model.model.{path}.lora_A.weight"] = each.read.contiguous()
            factors[f"base_model.model.{path}.lora_B.weight"] = each.write.contiguous()
        save_file(factors, folder / "adapter_model.safetensors")
        settings = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base,
            "r": self.rank,
            "lora_alpha": self.rank,
            "target_modules": sorted({path.rpartition(".")[2] for path in self.by_path}),
            "bias": "none",
            "layers_to_transform": sorted({layer_of(path) for path in written}),
        }
        (folder / "adapter_config.json").write_text(json.dumps(settings, indent=1))


def layer_of(path: str) -> int:
    """The number of the decoder layer in the path of a linear layer."""
    return int(path.split(".")[2])
