"""From a configuration to running services: loads models, stacks guards, starts engines."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from guard.config.schema import Config, ModelConfig
from guard.errors import GuardError, ModelError
from guard.models.chat import end_tokens
from guard.models.sources import resolve_source
from guard.plans.language import LanguagePlans
from guard.verdict import Verdict
from server.services.constraints import ConstraintCompiler
from server.services.interface import AnyRequest, LanguageModelInfo, Service
from server.services.prompts import PromptEncoder, context_length, require_fast
from server.services.text import BatchedTextService
from server.services.tools.template import tool_format
from steering.engines.transformers.engine import TransformersEngine
from steering.engines.transformers.loading import load_language_model

Record = Callable[[AnyRequest, Verdict], None]
"""Takes the one verdict of every row."""


def build_services(config: Config, record: Record) -> Mapping[str, Service]:
    """The service of each configured model, by name. Raises ModelError where loading fails."""
    services: dict[str, Service] = {}
    try:
        for model in config.models:
            services[model.name] = _service(config, model, record)
    except BaseException:
        for service in services.values():
            service.close()
        raise
    return services


def _service(config: Config, settings: ModelConfig, record: Record) -> Service:
    try:
        return _start(config, settings, record)
    except GuardError:
        raise
    except ImportError as error:
        extra = "vllm" if settings.engine == "vllm" else "diffusers"
        raise ModelError(
            f"model {settings.name}: {error.name} is not installed: "
            f"pip install 'inference-guard[serve,{extra}]'"
        ) from error
    except (ValueError, RuntimeError, AssertionError) as error:
        # torch raises RuntimeError or AssertionError for a device that is missing or out of memory
        raise ModelError(f"model {settings.name}: {error}") from error


def _start(config: Config, settings: ModelConfig, record: Record) -> Service:
    if settings.kind == "images":
        # imported here: a server of language models alone needs no diffusers
        from server.services.build_images import drawing_service

        return drawing_service(config, settings, record)
    if settings.engine == "vllm":
        # imported here: vLLM has an environment of its own
        from server.vllm.build import vllm_service

        return vllm_service(config, settings, record)
    return _transformers_service(config, settings, record)


def _transformers_service(config: Config, settings: ModelConfig, record: Record) -> Service:
    source = resolve_source(settings.source)
    model, tokenizer, vision = load_language_model(
        source, dtype=settings.dtype, device=settings.device
    )
    require_fast(tokenizer)
    plans = LanguagePlans(config, model, name=settings.name)
    ends = end_tokens(model.generation_config.eos_token_id, tokenizer)
    vocabulary = model.get_input_embeddings().num_embeddings
    context = context_length(model.config.get_text_config(), settings.max_context)
    tools = tool_format(tokenizer, settings.tool_parser)
    return BatchedTextService(
        LanguageModelInfo(
            name=settings.name,
            engine=settings.engine,
            created=int(time.time()),
            max_context=context,
            policies=plans.usable,
            sees=vision is not None,
            tools=tools,
        ),
        PromptEncoder(
            tokenizer,
            vocabulary=vocabulary,
            max_context=context,
            vision=vision,
            tools=tools,
        ),
        TransformersEngine(model, plans.bank, capacity=config.server.max_batch, vision=vision),
        plans,
        ConstraintCompiler(tokenizer, vocabulary, ends),
        end_tokens=ends,
        prefill_tokens=config.server.max_prefill_tokens,
        queue_limit=config.server.queue_limit,
        record=record,
    )
