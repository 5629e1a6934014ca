"""From the settings of a model to a running vLLM engine with the plugin."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

from transformers import AutoConfig, AutoTokenizer
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.v1.engine.async_llm import AsyncLLM

from guard.config.schema import Config, ModelConfig
from guard.config.vllm_plugin import CONFIG
from guard.errors import ModelError
from guard.models.chat import end_tokens
from guard.models.sources import resolve_source
from guard.verdict import Verdict
from server.services.interface import AnyRequest, LanguageModelInfo
from server.services.prompts import PromptEncoder, context_length, require_fast
from server.services.tools.template import tool_format
from server.vllm.install import install
from server.vllm.service import VllmService

_services: dict[str, VllmService] = {}
"""The services of this process, by the model's name."""


def vllm_service(
    config: Config, settings: ModelConfig, record: Callable[[AnyRequest, Verdict], None]
) -> VllmService:
    """Start an engine and return its service. Raises GuardError, ValueError and RuntimeError."""
    if config.path is None:
        raise ModelError('engine = "vllm" needs a configuration file: its workers read it, too')
    if settings.device != "auto":
        raise ModelError(
            f"model {settings.name}: vLLM runs on the device that it was built for: leave 'device' "
            "out"
        )
    # vLLM's processes find the plugin by this variable; a fork of a process with threads is unsafe
    os.environ[CONFIG] = str(config.path)
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    install(config.path, keyed=False, record=_keep_verdict)
    source = resolve_source(settings.source)
    tokenizer = AutoTokenizer.from_pretrained(source)
    require_fast(tokenizer)
    model_config = AutoConfig.from_pretrained(source)
    context = context_length(model_config, settings.max_context)
    tools = tool_format(tokenizer, settings.tool_parser)
    engine = AsyncLLM.from_engine_args(_arguments(config, settings, source, context))
    entries = engine.input_processor.guard.entries
    generation_config = engine.model_config.try_get_generation_config()
    # a row whose last token a guard has to read takes one more token from vLLM
    room = context - 1
    service = _services[settings.name] = VllmService(
        LanguageModelInfo(
            name=settings.name,
            engine=settings.engine,
            created=int(time.time()),
            max_context=room,
            policies=tuple(name for name, entry in entries.items() if not entry.plan.refuses),
            tools=tools,
        ),
        PromptEncoder(tokenizer, vocabulary=model_config.vocab_size, max_context=room, tools=tools),
        engine,
        end_tokens=end_tokens(
            generation_config.get("eos_token_id"), tokenizer, model_config.vocab_size
        ),
        capacity=config.server.max_batch,
        queue_limit=config.server.queue_limit,
        record=record,
    )
    return service


def _arguments(config: Config, settings: ModelConfig, source: str, context: int) -> AsyncEngineArgs:
    fixed: dict[str, Any] = {
        "model": source,
        "served_model_name": settings.name,
        "dtype": settings.dtype,
        "max_model_len": context,
        "max_num_seqs": config.server.max_batch,
        "disable_log_stats": True,
    }
    if conflicts := fixed.keys() & settings.engine_options.keys():
        raise ModelError(
            f"model {settings.name}: engine_options: this server sets "
            f"{', '.join(sorted(conflicts))} itself: leave it out"
        )
    try:
        return AsyncEngineArgs(**fixed, **settings.engine_options)
    except TypeError as error:
        raise ModelError(f"model {settings.name}: engine_options: {error}") from error


def _keep_verdict(verdict: Verdict, _record_id: str) -> None:
    if (service := _services.get(verdict.model)) is not None:
        service.keep_verdict(verdict)
