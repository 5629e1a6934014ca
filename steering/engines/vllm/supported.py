"""Which engine configurations of vLLM guards can follow, and how they have to be changed for it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from vllm.compilation.breakable_cudagraph import is_breakable_cudagraph_enabled
from vllm.config import CUDAGraphMode
from vllm.platforms import current_platform

from steering.engines.errors import Unsupported
from steering.engines.vllm.connectors import FOLLOWED, unfollowed_connector
from steering.engines.vllm.tap import OPERATOR

logger = logging.getLogger(__name__)


def require_followed(config: Any) -> None:
    """Raise Unsupported for an engine configuration with which guards are not tested."""
    runner, parallel = config.model_config.runner_type, config.parallel_config
    compilation, connector = config.compilation_config, unfollowed_connector(config)
    graphs = compilation.cudagraph_mode
    pieces = graphs.has_piecewise_cudagraphs()
    refused = {
        # the tensors between its stages cannot carry the scores
        "pipeline parallelism by an external launcher": (
            parallel.pipeline_parallel_size > 1
            and parallel.distributed_executor_backend == "external_launcher"
        ),
        "speculative decoding with async scheduling (--no-async-scheduling)": (
            config.speculative_config is not None and config.scheduler_config.async_scheduling
        ),
        # it spreads the drafts over the requests on the device alone
        "adaptive verification of drafts": getattr(
            config.speculative_config, "enable_adaptive_verification", False
        ),
        f"the KV connector {connector} (only {', '.join(FOLLOWED)})": connector is not None,
        f"the runner {runner!r}": runner != "generate",
        # guards are bound to the weights that they were fitted on
        "weights that come while it runs (weight_transfer_config)": (
            config.weight_transfer_config is not None
        ),
        # captured with prompts of any length, which are decided on otherwise than single tokens
        "CUDA graphs of whole prompts (-cc.cudagraph_mode=FULL_AND_PIECEWISE)": (
            graphs == CUDAGraphMode.FULL
        ),
        "breakable CUDA graphs (VLLM_USE_BREAKABLE_CUDAGRAPH=0)": (
            pieces and is_breakable_cudagraph_enabled()
        ),
        "Inductor's graph partition (-cc.use_inductor_graph_partition=false)": (
            pieces and bool(compilation.use_inductor_graph_partition)
        ),
        # vLLM's attention on a CPU runs them one after the other, so that states are not those of
        # the fit
        "images whose tokens attend to each other on a CPU (without images: "
        "--limit-mm-per-prompt.image 0)": (
            config.model_config.is_mm_prefix_lm and current_platform.is_cpu()
        ),
        # half of a batch would be taken for the other half
        "micro-batches (--enable-dbo and --ubatch-size)": parallel.use_ubatching,
        # layers would see other tokens than the first one
        "fast prefill (--kv-sharing-fast-prefill)": config.cache_config.kv_sharing_fast_prefill,
        "context parallelism": (
            parallel.decode_context_parallel_size > 1 or parallel.prefill_context_parallel_size > 1
        ),
    }
    if named := [name for name, applies in refused.items() if applies]:
        raise Unsupported(f"guards do not go together with {', '.join(named)} yet")


def adapt(config: Any) -> None:
    """Before the model is loaded: change an engine's configuration so that guards run in each of
    its forwards."""
    compilation = config.compilation_config
    graphs = compilation.cudagraph_mode
    if config.speculative_config is not None and graphs.has_full_cudagraphs():
        # drafts are decided on one after the other, which no graph of a whole forward does
        compilation.cudagraph_mode = graphs.mixed_mode()
        logger.warning(
            "guards follow drafts outside of full CUDA graphs: cudagraph_mode is %s, not %s",
            compilation.cudagraph_mode.name,
            graphs.name,
        )
    if compilation.cudagraph_mode.has_piecewise_cudagraphs():
        # within a captured piece the operator would run only once
        operators = [*(compilation.splitting_ops or [])]
        if OPERATOR not in operators:
            compilation.splitting_ops = [*operators, OPERATOR]


def separate_compile_cache(config: Any, layers: Sequence[int]) -> None:
    """Give models compiled with these layers hooked an entry of their own in the compile cache:
    the hash that vLLM computes does not cover hooks."""
    additional = config.additional_config
    if not isinstance(additional, dict):
        raise Unsupported("guards need an additional_config that is a dictionary: change it to one")
    config.additional_config = {**additional, "inference_guard": list(layers)}
