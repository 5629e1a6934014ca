"""Operators put into vLLM's Llama by a hook: one that CUDA graphs can serve, and one that they
cannot, of the same arithmetic. What tells them apart shows that the emulation would tell."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from torch import Tensor

FACTOR = -1.0
"""By which the output of each layer is multiplied, in requests alone: not while vLLM warms up, nor
while it captures."""

_begun: list[bool] = []
_factor: list[Tensor] = []


def by_branch() -> None:
    """The operator asks Python whether there is something to do, as at capture there is not."""

    def act(hidden: Tensor) -> None:
        if _begun:
            hidden.mul_(FACTOR)

    _put(act, _begun.append)


def by_buffer() -> None:
    """It multiplies by what stands in a buffer."""
    import torch

    _factor.append(torch.ones(1))

    def act(hidden: Tensor) -> None:
        hidden.mul_(_factor[0])

    _put(act, lambda _begun: _factor[0].fill_(FACTOR))


def by_stranger() -> None:
    """It makes the buffer anew for every step, and looks at it."""
    import torch

    def act(hidden: Tensor) -> None:
        factor = torch.tensor([FACTOR if _begun else 1.0])
        if factor.item():
            hidden.mul_(factor)

    _put(act, _begun.append)


def _put(act: Callable[[Tensor], None], begin: Callable[[bool], Any]) -> None:
    import torch
    from vllm.model_executor.models.llama import LlamaDecoderLayer
    from vllm.utils.torch_utils import direct_register_custom_op

    def fault(hidden: Tensor) -> None:
        act(hidden)

    def fake(hidden: Tensor) -> None:
        return None

    direct_register_custom_op("inference_guard_fault", fault, ["hidden"], fake)
    forward = LlamaDecoderLayer.forward

    def multiplied(self: Any, *args: Any, **kwargs: Any) -> Any:
        hidden, residual = forward(self, *args, **kwargs)
        torch.ops.vllm.inference_guard_fault(hidden)
        return hidden, residual

    LlamaDecoderLayer.forward = multiplied  # type: ignore[method-assign]
    _begin_with_requests(begin)


def _begin_with_requests(begin: Callable[[bool], Any]) -> None:
    from vllm.v1.worker.gpu_worker import Worker

    load, execute = Worker.load_model, Worker.execute_model

    def load_model(self: Any, *args: Any, **kwargs: Any) -> Any:
        made = load(self, *args, **kwargs)
        guarded = SimpleNamespace(persistent_tensors=lambda: list(_factor))
        self.model_runner.guarded = guarded
        return made

    def execute_model(self: Any, scheduled: Any, *args: Any, **kwargs: Any) -> Any:
        if scheduled.total_num_scheduled_tokens:
            begin(True)
        return execute(self, scheduled, *args, **kwargs)

    Worker.load_model, Worker.execute_model = load_model, execute_model  # type: ignore
