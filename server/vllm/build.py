"""From a configured model to a running vLLM engine with the plugin."""

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
from server.services.prompts import PromptEncoder
from server.vllm.install import install
from server.vllm.service import VllmService

_services: dict[str, VllmService] = {}
"""By the name of the model, of this process."""


def vllm_service(
    config: Config, settings: ModelConfig, record: Callable[[AnyRequest, Verdict], None]
) -> VllmService:
    """Start an engine. Raises GuardError, ValueError and RuntimeError where it does not start."""
    if config.path is None:
        raise ModelError('engine = "vllm" needs a configuration that was read from a file')
    if settings.device != "auto":
        raise ModelError(f"model {settings.name}: vLLM takes its build's device: leave it out")
    # its processes find the plugin through this, and must not be forked from one that has threads
    os.environ[CONFIG] = str(config.path)
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    install(config.path, keyed=False, record=_hand_on)
    source = resolve_source(settings.source)
    tokenizer = AutoTokenizer.from_pretrained(source)
    if not tokenizer.is_fast:
        raise ValueError("it has no tokenizer.json: text cannot be streamed without")
    about = AutoConfig.from_pretrained(source)
    own = getattr(about, "max_position_embeddings", 2048)
    context = min(own, settings.max_context or own)
    engine = AsyncLLM.from_engine_args(_arguments(config, settings, source, context))
    entries = engine.input_processor.guard.entries
    stated = engine.model_config.try_get_generation_config()
    # a row that waits for the look at its last token asks for one more
    room = context - 1
    service = _services[settings.name] = VllmService(
        LanguageModelInfo(
            name=settings.name,
            engine=settings.engine,
            created=int(time.time()),
            max_context=room,
            policies=tuple(name for name, entry in entries.items() if not entry.plan.refuses),
        ),
        PromptEncoder(tokenizer, vocabulary=about.vocab_size, max_context=room),
        engine,
        end_tokens=end_tokens(stated.get("eos_token_id"), tokenizer),
        capacity=config.server.max_batch,
        queue_limit=config.server.queue_limit,
        record=record,
    )
    return service


def _arguments(config: Config, settings: ModelConfig, source: str, context: int) -> AsyncEngineArgs:
    given: dict[str, Any] = {
        "model": source,
        "served_model_name": settings.name,
        "dtype": settings.dtype,
        "max_model_len": context,
        "max_num_seqs": config.server.max_batch,
        "disable_log_stats": True,
    }
    if taken := given.keys() & settings.engine_options.keys():
        told = f"model {settings.name}: engine_options: {', '.join(sorted(taken))}"
        raise ModelError(f"{told} is this server's to set: leave it out")
    try:
        return AsyncEngineArgs(**given, **settings.engine_options)
    except TypeError as error:
        raise ModelError(f"model {settings.name}: engine_options: {error}") from error


def _hand_on(verdict: Verdict) -> None:
    if (service := _services.get(verdict.model)) is not None:
        service.took(verdict)
