"""Seams of the engine: scheduler, workers, configuration, and both model runners."""

from __future__ import annotations

from tests.vllm.seams.seam import Seam

_SCHEDULER = "v1/core/sched/scheduler.py"
_SCHEDULED = "v1/core/sched/output.py"
_V1 = "v1/worker/gpu_model_runner.py"
_V2 = "v1/worker/gpu/model_runner.py"
_GPU_WORKER = "v1/worker/gpu_worker.py"

SCHEDULING: tuple[Seam, ...] = (
    Seam(
        _SCHEDULER,
        "Scheduler.update_from_output",
        "readings come with a request's output, and a guard may end it",
        parameters=("scheduler_output", "model_runner_output"),
    ),
    Seam(
        _SCHEDULER,
        "Scheduler.finish_requests",
        "a request that a guard has ended is taken from the scheduler",
        "read",
        parameters=("request_ids", "finished_status"),
    ),
    Seam(
        _SCHEDULED,
        "SchedulerOutput",
        "which requests have ended, are preempted or have drafts, and which blocks are copied",
        "read",
        has=(
            "finished_req_ids",
            "preempted_req_ids",
            "kv_cache_block_copies",
            "scheduled_spec_decode_tokens",
            "scheduled_new_reqs",
        ),
    ),
    Seam(
        _SCHEDULED,
        "NewRequestData",
        "the plan of a request that comes in",
        "read",
        has=("req_id", "sampling_params"),
    ),
    Seam(
        "v1/outputs.py",
        "ModelRunnerOutput",
        "a forward's reports go with it to the scheduler",
        "read",
        has=("req_ids", "req_id_to_index", "sampled_token_ids"),
    ),
    Seam(
        "v1/worker/worker_base.py",
        "WorkerBase",
        "has the method that loads another configuration: worker_extension_cls takes one class, "
        "which may be the operator's own",
        has=("vllm_config",),
    ),
    Seam(
        "v1/kv_cache_interface.py",
        "KVCacheConfig",
        "kept gates have one place for each token of the cache of keys",
        "read",
        has=("num_blocks", "kv_cache_groups"),
    ),
    Seam("v1/kv_cache_interface.py", "FullAttentionSpec", "layers that see all tokens", "read"),
    Seam(
        "utils/torch_utils.py",
        "direct_register_custom_op",
        "the hook is an operator that compilation leaves as it is",
        "official",
        parameters=("op_name", "op_func", "mutates_args", "fake_impl"),
    ),
    Seam(
        "sequence.py",
        "IntermediateTensors",
        "a pipeline stage sends its gates with its states",
        "read",
        has=("tensors",),
    ),
    Seam(
        "config/vllm.py",
        "VllmConfig",
        "what guards do not follow is refused; compiled code is kept by what is hooked",
        "read",
        has=(
            "use_v2_model_runner",
            "kv_transfer_config",
            "speculative_config",
            "additional_config",
            "compilation_config",
        ),
    ),
    Seam(
        "config/compilation.py",
        "CompilationConfig",
        "graphs are taken around the hook, or are refused",
        "read",
        has=("cudagraph_mode", "splitting_ops"),
    ),
    Seam(
        "config/model.py",
        "ModelConfig",
        "the facts about a model that guards depend on",
        "read",
        has=(
            "runner_type",
            "served_model_name",
            "enforce_eager",
            "get_total_num_hidden_layers",
            "get_hidden_size",
            "try_get_generation_config",
        ),
    ),
    Seam(
        "config/parallel.py",
        "ParallelConfig",
        "an external launcher's pipeline is refused",
        "read",
        has=(
            "pipeline_parallel_size",
            "distributed_executor_backend",
            "decode_context_parallel_size",
            "prefill_context_parallel_size",
            "use_ubatching",
        ),
    ),
    Seam(
        _GPU_WORKER,
        "Worker.compile_or_warm_up_model",
        "requests of vLLM's own, while it warms up, have no plan",
    ),
    Seam(
        "v1/worker/cpu_worker.py",
        "CPUWorker.compile_or_warm_up_model",
        "requests of vLLM's own, while it warms up, have no plan",
    ),
    Seam(
        _GPU_WORKER,
        "Worker.wake_up",
        "guards are stacked anew after the device's memory was dropped",
        parameters=("tags",),
    ),
    Seam(
        "v1/worker/cpu_worker.py",
        "CPUWorker.wake_up",
        "guards are stacked anew after the device's memory was dropped",
        parameters=("tags",),
    ),
    Seam(_GPU_WORKER, "Worker.reload_weights", "other weights are refused under guards"),
    Seam(
        "compilation/breakable_cudagraph.py",
        "is_breakable_cudagraph_enabled",
        "graphs of that kind are refused",
        "read",
    ),
    Seam(
        "v1/outputs.py",
        "AsyncModelRunnerOutput",
        "reports follow an output that is on its way from the device",
        "read",
        has=("get_output",),
    ),
)

V1: tuple[Seam, ...] = (
    Seam(_V1, "GPUModelRunner.load_model", "hooks stand before anything is compiled"),
    Seam(
        "v1/worker/cpu_model_runner.py",
        "CPUModelRunner.load_model",
        "the CPU's runner loads its model by itself",
    ),
    Seam(
        _V1,
        "GPUModelRunner.initialize_kv_cache",
        "the table is as large as the cache of keys",
        parameters=("kv_cache_config",),
    ),
    Seam(
        _V1,
        "GPUModelRunner._update_states",
        "requests that have ended leave their rows",
        parameters=("scheduler_output",),
    ),
    Seam(
        _V1,
        "GPUModelRunner._prepare_inputs",
        "the table learns which tokens of which requests a forward has",
        parameters=("scheduler_output", "num_scheduled_tokens"),
    ),
    Seam(
        _V1,
        "GPUModelRunner.execute_model",
        "guards act inside it alone, and in this order",
        parameters=("scheduler_output", "intermediate_tensors"),
        calls=(
            "self._update_states",
            "self._prepare_inputs",
            "self._determine_batch_execution_and_padding",
            "self._model_forward",
        ),
    ),
    Seam(
        _V1,
        "GPUModelRunner._model_forward",
        "the forward starts, and it is known whether it replays a graph",
    ),
    Seam(
        _V1,
        "GPUModelRunner.get_kv_cache_spec",
        "where all layers slide, some keep the keys of all tokens",
    ),
    Seam(_V1, "GPUModelRunner.sample_tokens", "reports are attached to its output"),
    Seam(_V1, "GPUModelRunner.capture_model", "graphs are captured with a neutral table"),
    Seam(_V1, "GPUModelRunner._dummy_run", "no guard acts in it", parameters=("num_tokens",)),
    Seam(
        _V1,
        "GPUModelRunner",
        "the state of the batch",
        "read",
        has=(
            "vllm_config",
            "model_config",
            "speculative_config",
            "device",
            "max_num_reqs",
            "requests",
            "input_batch",
            "kv_cache_config",
            "model",
        ),
    ),
    Seam(
        "v1/worker/gpu_input_batch.py",
        "InputBatch",
        "rows, prompts and computed tokens",
        "read",
        has=("req_ids", "num_prompt_tokens", "num_computed_tokens_cpu", "block_table"),
    ),
    Seam(
        "v1/worker/block_table.py",
        "BlockTable",
        "the place of each token in the cache of keys",
        "read",
        has=("block_table", "block_size"),
    ),
    Seam(
        _V1,
        "AsyncGPUModelRunnerOutput",
        "an output on its way from the device",
        "read",
        has=("get_output", "_model_runner_output"),
    ),
)

V2: tuple[Seam, ...] = (
    Seam(_V2, "GPUModelRunner.load_model", "hooks stand before anything is compiled"),
    Seam(
        _V2,
        "GPUModelRunner.initialize_kv_cache",
        "the table is as large as the cache of keys; profiling calls it, too",
        parameters=("kv_cache_config", "is_profiling"),
    ),
    Seam(
        _V2,
        "GPUModelRunner.finish_requests",
        "requests that have ended leave their rows",
        parameters=("scheduler_output",),
    ),
    Seam(
        _V2,
        "GPUModelRunner.add_requests",
        "the plan of a request is kept: the runner keeps no parameters",
        parameters=("scheduler_output",),
    ),
    Seam(
        _V2,
        "GPUModelRunner.get_kv_cache_spec",
        "where all layers slide, some keep the keys of all tokens",
    ),
    Seam(
        _V2,
        "GPUModelRunner.prepare_inputs",
        "tells whether the forward replays a graph, and makes the batch that the table reads",
        parameters=("scheduler_output", "batch_req_state", "batch_desc"),
    ),
    Seam(
        _V2,
        "GPUModelRunner.prepare_attn",
        "the table learns which tokens of which requests a forward has, and their places",
        parameters=("input_batch",),
    ),
    Seam(
        _V2,
        "GPUModelRunner.execute_model",
        "guards act inside it alone, and in this order",
        parameters=("scheduler_output", "intermediate_tensors", "dummy_run"),
        calls=(
            "self.finish_requests",
            "self.add_requests",
            "self.prepare_inputs",
            "self.prepare_attn",
        ),
    ),
    Seam(
        _V2,
        "GPUModelRunner.sample_tokens",
        "reports are attached to its output",
        parameters=("grammar_output",),
    ),
    Seam(
        _V2,
        "GPUModelRunner.capture_model",
        "graphs are captured with a neutral table",
        keywords=("profile_only",),
    ),
    Seam(_V2, "GPUModelRunner._dummy_run", "no guard acts in it", parameters=("num_tokens",)),
    Seam(
        _V2,
        "GPUModelRunner",
        "the state of the batch",
        "read",
        has=("vllm_config", "speculative_config", "device", "max_num_reqs", "req_states", "model"),
    ),
    Seam(
        "v1/worker/gpu/input_batch.py",
        "InputBatch",
        "rows, lengths and drafts",
        "read",
        has=(
            "req_ids",
            "idx_mapping_np",
            "num_scheduled_tokens",
            "num_tokens",
            "num_tokens_after_padding",
            "num_computed_tokens_np",
            "num_draft_tokens_per_req",
        ),
    ),
    Seam(
        "v1/worker/gpu/states.py",
        "RequestState",
        "lengths of prompts",
        "read",
        has=("prompt_len",),
    ),
    Seam(
        "v1/worker/gpu/async_utils.py",
        "AsyncOutput",
        "an output on its way from the device",
        "read",
        has=("get_output", "model_runner_output"),
    ),
    Seam(
        "v1/worker/gpu/cudagraph_utils.py",
        "CudaGraphManager.run_fullgraph",
        "the replay of a full graph",
        "read",
        parameters=("desc",),
    ),
)
