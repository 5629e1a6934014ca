"""Seams of the front end: requests on their way into the engine, and what comes out."""

from __future__ import annotations

from tests.vllm.seams.seam import Seam

_INPUT = "v1/engine/input_processor.py"
_ASYNC = "v1/engine/async_llm.py"
_OUTPUT = "v1/engine/output_processor.py"
_ENGINE = "v1/engine/__init__.py"
_CORE = "v1/engine/core.py"
_CHAT = "entrypoints/openai/chat_completion/protocol.py"
_COMPLETION = "entrypoints/openai/completion/protocol.py"

FRONT: tuple[Seam, ...] = (
    Seam(
        _INPUT,
        "InputProcessor.__init__",
        "each front end reads the configuration, refuses what guards do not follow, and has the "
        "policies: no official place sees an engine's configuration before its first request",
        parameters=("vllm_config",),
    ),
    Seam(
        _INPUT,
        "InputProcessor",
        "raw prompts are processed in a thread, which has to know the HTTP request, too",
        "read",
        has=("process_inputs_async",),
    ),
    Seam(
        _INPUT,
        "InputProcessor.process_inputs",
        "every request passes here once: its policy is chosen, its plan and its salt are set on a "
        "copy of its parameters",
        parameters=("request_id", "prompt", "params"),
        calls=("params.clone", "EngineCoreRequest"),
    ),
    Seam(
        _ENGINE,
        "EngineCoreRequest",
        "carries plan and salt to the engine",
        "read",
        has=("request_id", "sampling_params", "cache_salt", "external_req_id"),
    ),
    Seam(
        _ASYNC,
        "AsyncLLM.add_request",
        "requests of HTTP enter by process_inputs, in either of its forms",
        "read",
        calls=(
            "self.input_processor.process_inputs",
            "self.input_processor.process_inputs_async",
            "self._add_request",
        ),
    ),
    Seam(
        "v1/engine/llm_engine.py",
        "LLMEngine.add_request",
        "requests from Python enter by process_inputs",
        "read",
        calls=("self.input_processor.process_inputs", "self.output_processor.add_request"),
    ),
    Seam(
        _ASYNC,
        "AsyncLLM.generate",
        "the HTTP request that generates is told the verdicts of its choices",
        parameters=("prompt", "sampling_params", "request_id"),
        calls=("self.add_request",),
    ),
    Seam(
        _ASYNC,
        "AsyncLLM",
        "a reload reaches policies, running requests and workers",
        "read",
        has=("input_processor", "output_processor", "_client_count", "collective_rpc"),
    ),
    Seam(
        _OUTPUT,
        "RequestState.from_new_request",
        "a request gets what its verdict is made of; one without a known plan is refused",
        keywords=("request", "parent_req", "request_index"),
    ),
    Seam(
        _OUTPUT,
        "OutputProcessor.add_request",
        "all states of requests are made by from_new_request",
        "read",
        calls=("RequestState.from_new_request",),
    ),
    Seam(
        _OUTPUT,
        "RequestState.make_request_output",
        "the readings come with an engine's output, and its end makes the verdict",
        parameters=(
            "new_token_ids",
            "pooling_output",
            "finish_reason",
            "stop_reason",
            "kv_transfer_params",
        ),
    ),
    Seam(
        _OUTPUT,
        "RequestState._new_completion_output",
        "completions have their verdict, and the finish reason content_filter",
    ),
    Seam(
        _OUTPUT,
        "OutputProcessor.process_outputs",
        "every output and every end passes these",
        "read",
        calls=("req_state.make_request_output", "self._finish_request"),
    ),
    Seam(
        _OUTPUT,
        "OutputProcessor.abort_requests",
        "requests that are given up have their verdict",
        parameters=("request_ids",),
    ),
    Seam(
        _OUTPUT,
        "OutputProcessor.propagate_error",
        "requests of an engine that has died have their verdict",
    ),
    Seam(
        _OUTPUT,
        "OutputProcessor._finish_request",
        "requests that an engine refuses on arrival have their verdict",
        parameters=("req_state",),
    ),
    Seam(
        _OUTPUT,
        "OutputProcessor",
        "a reload finds running requests",
        "read",
        has=("request_states",),
    ),
    Seam(
        "outputs.py",
        "RequestOutput.add",
        "outputs that nobody has fetched yet are merged, verdicts too",
        parameters=("next_output",),
    ),
    Seam(
        "outputs.py",
        "CompletionOutput",
        "a verdict is of one completion",
        "read",
        has=("index", "finish_reason", "stop_reason"),
    ),
    Seam(_ENGINE, "FinishReason", "ends are told apart", "read", has=("STOP", "ABORT", "ERROR")),
    Seam(
        _ENGINE,
        "EngineCoreOutput",
        "kv_transfer_params, its only open mapping, has the readings",
        "read",
        has=(
            "request_id",
            "new_token_ids",
            "new_logprobs",
            "finish_reason",
            "stop_reason",
            "kv_transfer_params",
        ),
    ),
    Seam(
        _CORE,
        "EngineCore.preprocess_add_request",
        "a request without a plan, from a front end without guards, is refused alone",
        parameters=("request",),
    ),
    Seam(
        _CORE,
        "EngineCoreProc.process_input_sockets",
        "a refusal there is an error of that request, and the engine goes on",
        "read",
        calls=("self.preprocess_add_request", "self._handle_request_preproc_error"),
    ),
    Seam(
        "v1/engine/core_client.py",
        "InprocClient.add_request",
        "an engine in this process refuses such a request, too",
        "read",
        calls=("self.engine_core.preprocess_add_request",),
    ),
    Seam(
        _CHAT,
        "ChatCompletionRequest.to_beam_search_params",
        "beam search asks without extra arguments: it has the default policy alone",
    ),
    Seam(
        _COMPLETION,
        "CompletionRequest.to_beam_search_params",
        "as for chat",
    ),
    Seam(
        _CHAT,
        "ChatCompletionRequest.to_sampling_params",
        "`guard` in a batch from a file, which no middleware reads, is refused",
    ),
    Seam(_COMPLETION, "CompletionRequest.to_sampling_params", "as for chat"),
    *(
        Seam(file, name, "bodies name their policy in vllm_xargs", "read", has=("vllm_xargs",))
        for file, name in (
            (_CHAT, "ChatCompletionRequest"),
            (_COMPLETION, "CompletionRequest"),
            ("entrypoints/openai/responses/protocol.py", "ResponsesRequest"),
            ("entrypoints/anthropic/protocol.py", "AnthropicMessagesRequest"),
        )
    ),
    Seam(
        "entrypoints/launchers/app.py",
        "build_app",
        "our middleware is inside vLLM's own, which authenticates",
        "read",
        calls=("attach_endpoint_plugins", "init_entrypoints_middleware"),
    ),
    Seam(
        "plugins/endpoint_plugins/interface.py",
        "attach_endpoint_plugins",
        "our endpoint plugin is attached where GUARD_CONFIG is set: vLLM loads it only where "
        "VLLM_PLUGINS names it, and then no other plugin that is not named",
        parameters=("app", "supported_tasks"),
    ),
    Seam(
        "plugins/endpoint_plugins/interface.py",
        "EndpointPlugin",
        "routes and middleware are one of `vllm.endpoint_plugins`",
        "official",
        has=("name", "required_tasks", "attach_router", "init_state"),
    ),
    Seam(
        "plugins/__init__.py",
        "load_general_plugins",
        "the plugin is called in every process by `vllm.general_plugins`",
        "official",
    ),
    Seam(
        "plugins/__init__.py",
        "",
        "the groups of plugins",
        "official",
        has=("DEFAULT_PLUGINS_GROUP", "ENDPOINT_PLUGINS_GROUP"),
    ),
    Seam(
        "envs.py",
        "",
        "the Rust front end, which knows no policies, is refused at start",
        "read",
        has=("VLLM_USE_RUST_FRONTEND",),
    ),
    Seam(
        "entrypoints/cli/serve.py",
        "run_multi_api_server",
        "a Rust front end starts after the plugin has been loaded with the engine's arguments",
        "read",
        calls=("vllm.AsyncEngineArgs.from_cli_args", "RustFrontendProcessManager"),
    ),
)
