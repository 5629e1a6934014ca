"""What a worker has done: which runner it has, and the graphs that it captured and replayed."""

from __future__ import annotations

from collections import Counter
from typing import Any

from tests.vllm.emulation.settings import asked
from tests.vllm.emulation.tape import Graph

REPORT = "emulation_report"
"""Name of the method of workers that reports."""

_forwards: Counter[str] = Counter()
_places: list[tuple[Any, int]] = []
"""Persistent tensors, and where they stood when the graphs were captured."""


def is_v2() -> bool:
    """Whether the settings ask for model runner V2."""
    settings = asked()
    return settings is not None and settings.runner == "v2"


def install() -> None:
    """Before the workers are made."""
    from vllm.v1.worker.worker_base import WorkerBase

    setattr(WorkerBase, REPORT, _report)
    if is_v2():
        _count_v2()
    else:
        _count_v1()


def ready(runner: Any) -> None:
    """From here on count forwards: what ran until now were captures."""
    _forwards.clear()
    _places[:] = [(tensor, tensor.data_ptr()) for tensor in Graph.persistent()]
    for graph in _graphs():
        graph.replays = 0


def _graphs() -> list[Graph]:
    return [graph for graphs in Graph.captured.values() for graph in graphs]


def _report(worker: Any) -> dict[str, Any]:
    now = {tensor.data_ptr() for tensor in Graph.persistent()}
    return {
        "runner": "v2" if ".gpu." in _base(worker.model_runner) else "v1",
        "captured": {kind: len(graphs) for kind, graphs in Graph.captured.items()},
        "replayed": {
            kind: sum(graph.replays for graph in graphs) for kind, graphs in Graph.captured.items()
        },
        "forwards": {name: _forwards[name] for name in ("FULL", "PIECEWISE", "NONE")},
        "padded": _forwards["padded"],
        "looked_into": sum(graph.looked_into for graph in _graphs()),
        "syncs": sorted({told for graph in _graphs() for told in graph.syncs}),
        "strangers": sorted({told for graph in _graphs() for told in graph.strangers}),
        "moved": [
            f"{tuple(tensor.shape)} {tensor.dtype}" for tensor, place in _places if place not in now
        ],
    }


def _base(runner: Any) -> str:
    """The module of vLLM's runner for a GPU that it inherits from."""
    (base,) = [kind for kind in type(runner).__mro__ if kind.__name__ == "GPUModelRunner"]
    return base.__module__


def _count_v1() -> None:
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    own = GPUModelRunner._determine_batch_execution_and_padding
    execute = GPUModelRunner.execute_model
    inside: list[bool] = []

    def determine(self: Any, num_tokens: int, *args: Any, **kwargs: Any) -> Any:
        found = own(self, num_tokens, *args, **kwargs)
        if inside:
            _forwards[found[0].name] += 1
            _forwards["padded"] += found[1].num_tokens > num_tokens
        return found

    def execute_model(self: Any, *args: Any, **kwargs: Any) -> Any:
        inside.append(True)
        try:
            return execute(self, *args, **kwargs)
        finally:
            inside.pop()

    GPUModelRunner._determine_batch_execution_and_padding = determine  # type: ignore
    GPUModelRunner.execute_model = execute_model  # type: ignore


def _count_v2() -> None:
    from vllm.v1.worker.gpu.model_runner import GPUModelRunner

    own = GPUModelRunner.prepare_inputs

    def prepare_inputs(self: Any, scheduled: Any, state: Any, desc: Any, *args: Any) -> Any:
        batch = own(self, scheduled, state, desc, *args)
        _forwards[desc.cg_mode.name] += 1
        _forwards["padded"] += batch.num_tokens_after_padding > batch.num_tokens
        return batch

    GPUModelRunner.prepare_inputs = prepare_inputs  # type: ignore
