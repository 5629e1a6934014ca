"""vLLM's own managers of CUDA graphs, on taped graphs, for both model runners.

Modes are asked for as on a GPU: `compilation_config={"cudagraph_mode": ...}`. The model is split
into pieces by vLLM's compiler, and its pieces run as they are ("eager"): what Inductor makes of
them calls no operators, so that nothing could be taped.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from tests.vllm.emulation import census
from tests.vllm.emulation.tape import Graph, capture, capturing


def install() -> None:
    """Before the engine is configured."""
    torch.cuda.CUDAGraph, torch.cuda.graph = Graph, capture  # type: ignore
    torch.cuda.is_current_stream_capturing = capturing
    Graph.kind = staticmethod(_kind)  # type: ignore
    torch.accelerator.get_memory_info = lambda *_args: (0, 0)  # type: ignore
    torch.accelerator.synchronize = torch.accelerator.empty_cache = lambda *_args: None  # type: ignore
    _platform()
    _pools()
    _workers()


def _kind() -> str:
    from vllm.forward_context import in_piecewise_cudagraph

    return "pieces" if in_piecewise_cudagraph() else "full"


def _platform() -> None:
    from vllm.config import CompilationMode, CUDAGraphMode
    from vllm.platforms.cpu import CpuPlatform
    from vllm.v1.attention.backend import AttentionCGSupport
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionMetadataBuilder

    own = CpuPlatform.check_and_update_config.__func__  # type: ignore[attr-defined]

    def check_and_update_config(cls: Any, config: Any) -> None:
        compilation = config.compilation_config
        sizes, mode = compilation.cudagraph_capture_sizes, compilation.mode
        own(cls, config)
        compilation.cudagraph_capture_sizes = sizes
        if mode == CompilationMode.VLLM_COMPILE and config.lora_config is None:
            compilation.mode, compilation.backend = mode, "eager"
        if compilation.cudagraph_mode == CUDAGraphMode.NONE:
            compilation.cudagraph_capture_sizes = []

    wrapper = "vllm.compilation.cuda_graph.CUDAGraphWrapper"
    CpuPlatform.check_and_update_config = classmethod(check_and_update_config)  # type: ignore
    CpuPlatform.support_static_graph_mode = classmethod(lambda cls: True)  # type: ignore
    CpuPlatform.get_static_graph_wrapper_cls = classmethod(lambda cls: wrapper)  # type: ignore
    CpuPlatform.get_global_graph_pool = lambda self: None  # type: ignore
    CPUAttentionMetadataBuilder._cudagraph_support = AttentionCGSupport.ALWAYS


def _pools() -> None:
    """Memory and streams of a device are not needed."""
    import vllm.compilation.cuda_graph as pieces
    import vllm.v1.worker.gpu_model_runner as v1

    modules = [pieces, v1]
    if census.is_v2():
        import vllm.v1.worker.gpu.cudagraph_utils as manager
        import vllm.v1.worker.gpu.model_runner as v2

        modules += [manager, v2]
    nothing = {
        "capture_pool": lambda pool, config: contextlib.nullcontext(pool),
        "graph_capture": lambda device: contextlib.nullcontext(),
        "current_stream": lambda: None,
        "weak_ref_tensors": lambda tensors: tensors,
        "lock_workspace": lambda: None,
    }
    for module in modules:
        for name, instead in nothing.items():
            if hasattr(module, name):
                setattr(module, name, instead)


def _workers() -> None:
    """Workers capture once they are warm, as those of a GPU do; the V1 runner's model is wrapped
    as a GPU's is."""
    from vllm.compilation.cuda_graph import CUDAGraphWrapper
    from vllm.config import CUDAGraphMode
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner
    from vllm.v1.worker.cpu_worker import CPUWorker

    warm_up, load = CPUWorker.compile_or_warm_up_model, CPUModelRunner.load_model

    def compile_or_warm_up_model(self: Any) -> Any:
        times = warm_up(self)
        runner = self.model_runner
        Graph.persistent = staticmethod(lambda: _persistent(runner))  # type: ignore
        if self.compilation_config.cudagraph_mode != CUDAGraphMode.NONE:
            if self.use_v2_model_runner:
                _arm_v2(runner)
            runner.capture_model()
        census.ready(runner)
        return times

    def load_model(self: Any, *args: Any, **kwargs: Any) -> None:
        load(self, *args, **kwargs)
        if self.compilation_config.cudagraph_mode.has_full_cudagraphs():
            self.model = CUDAGraphWrapper(self.model, self.vllm_config, CUDAGraphMode.FULL)

    def get_model(self: Any) -> Any:
        return self.model.unwrap() if isinstance(self.model, CUDAGraphWrapper) else self.model

    CPUWorker.compile_or_warm_up_model = compile_or_warm_up_model  # type: ignore
    CPUModelRunner.load_model, CPUModelRunner.get_model = load_model, get_model  # type: ignore


def _persistent(runner: Any) -> list[torch.Tensor]:
    """What the guards of a runner say stays in its place."""
    told = getattr(getattr(runner, "guarded", None), "persistent_tensors", None)
    return list(told()) if told is not None else []


def _arm_v2(runner: Any) -> None:
    """A full graph of V2 is replayed outside of any forward context: what attention looks up of the
    step, which on a GPU stands in the buffers that were captured, is put around it."""
    from vllm.forward_context import is_forward_context_available, set_forward_context
    from vllm.v1.worker.gpu.attn_utils import build_slot_mappings_by_layer

    step: dict[str, Any] = {}
    prepare = runner.model_state.prepare_attn

    def prepare_attn(
        batch: Any, mode: Any, tables: Any, slots: Any, *args: Any, **more: Any
    ) -> Any:
        made = prepare(batch, mode, tables, slots, *args, **more)
        mappings = build_slot_mappings_by_layer(slots, runner.kv_cache_config)
        step.update(attention=made, slots=mappings, tokens=slots.shape[1])
        return made

    @contextlib.contextmanager
    def context() -> Iterator[None]:
        if is_forward_context_available():
            yield
            return
        with set_forward_context(
            step["attention"],
            runner.vllm_config,
            num_tokens=step["tokens"],
            slot_mapping=step["slots"],
        ):
            yield

    runner.model_state.prepare_attn = prepare_attn
    Graph.context = staticmethod(context)  # type: ignore
