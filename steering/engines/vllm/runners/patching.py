"""Which classes of vLLM are wrapped, and the guards of a runner of either kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

from vllm.v1.worker.cpu_model_runner import CPUModelRunner
from vllm.v1.worker.cpu_worker import CPUWorker
from vllm.v1.worker.gpu.model_runner import GPUModelRunner as GPUModelRunnerV2
from vllm.v1.worker.gpu_model_runner import GPUModelRunner
from vllm.v1.worker.gpu_worker import Worker

from steering.engines.vllm.reports import RowPlan
from steering.engines.vllm.runners import v1, v2
from steering.engines.vllm.runners.guarded import GuardedRunner
from steering.engines.vllm.runners.wrapping import surround
from steering.hidden.bank import HiddenBank


def guarded_runner(
    runner: Any, bank: HiddenBank, plans: Mapping[str, RowPlan], *, room: int
) -> GuardedRunner:
    """The guards of a model runner, whose model is loaded. As `GuardedRunner`."""
    if isinstance(runner, GPUModelRunnerV2):
        return v2.GuardedRunnerV2(runner, bank, plans, room=room)
    return v1.GuardedRunnerV1(runner, bank, plans, room=room)


def surround_runners(loaded: Callable[[Any], GuardedRunner]) -> None:
    """Guard the model runners of this process; `loaded` gives the guards of one whose model is
    loaded."""
    surround(GPUModelRunner, v1.AROUND, loaded)
    surround(CPUModelRunner, v1.AROUND, loaded)
    surround(GPUModelRunnerV2, v2.AROUND, loaded)
    for worker in (Worker, CPUWorker):
        worker.compile_or_warm_up_model = _warming(worker.compile_or_warm_up_model)


def _warming(original: Any) -> Any:
    """While it warms up, vLLM runs requests of its own, which have no plan."""

    @wraps(original)
    def compile_or_warm_up_model(self: Any, *args: Any, **kwargs: Any) -> Any:
        guarded: GuardedRunner | None = getattr(self.model_runner, "guarded", None)
        if guarded is None:
            return original(self, *args, **kwargs)
        guarded.warming = True
        try:
            return original(self, *args, **kwargs)
        finally:
            guarded.warming = False

    return compile_or_warm_up_model
