"""From a configuration to running services: loads models, stacks guards, starts engines."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path

from guard.config.schema import Config, ModelConfig
from guard.errors import GuardError, ModelError
from guard.models.chat import end_tokens
from guard.models.kind_checks import source_of
from guard.models.sources import resolve_source
from guard.plans.language import LanguagePlans
from guard.verdict import Verdict
from server.services.adapters import AdapterService
from server.services.constraints import ConstraintCompiler
from server.services.encoder import encoder_service
from server.services.interface import AnyRequest, Capability, LanguageModelInfo, Service
from server.services.prompts import PromptEncoder, context_length, require_fast
from server.services.text import BatchedTextService
from server.services.tools.template import ToolFormat, tool_format
from steering.engines.transformers.adapters.seam import AdapterSeam
from steering.engines.transformers.embeddings import StateEmbedder
from steering.engines.transformers.engine import TransformersEngine
from steering.engines.transformers.image_tokens import writes_images
from steering.engines.transformers.layers import even_context
from steering.engines.transformers.loading.models import load_language_model

Record = Callable[[AnyRequest, Verdict], None]
"""Takes the one verdict of every row."""


def build_services(config: Config, record: Record) -> Mapping[str, Service]:
    """The service of each configured model, and of each adapter, by name.

    Raises ModelError where loading fails.
    """
    services: dict[str, Service] = {}
    try:
        for model in config.models:
            service = services[model.name] = _service(config, model, record)
            if isinstance(service, BatchedTextService):
                for adapter in model.adapters:
                    services[adapter.name] = AdapterService(adapter, service)
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
    if settings.engine == "onnxruntime":
        return encoder_service(config, settings, record)
    if settings.engine == "vllm":
        # imported here: vLLM has an environment of its own
        from server.vllm.build import vllm_service

        return vllm_service(config, settings, record)
    if writes_images(Path(resolve_source(settings.source))):
        from server.services.build_images import writing_service

        return writing_service(config, settings, record)
    return _transformers_service(config, settings, record)


def _transformers_service(config: Config, settings: ModelConfig, record: Record) -> Service:
    source = source_of(settings.source, "language")
    model, tokenizer, vision = load_language_model(
        source,
        dtype=settings.dtype,
        device=settings.device,
        device_map=settings.device_map,
        quantization=settings.quantization,
    )
    require_fast(tokenizer)
    plans = LanguagePlans(config, model, name=settings.name)
    vocabulary = model.get_input_embeddings().num_embeddings
    ends = end_tokens(model.generation_config.eos_token_id, tokenizer, vocabulary)
    text_config = model.config.get_text_config()
    limit = context_length(text_config, settings.max_context)
    context = min(limit, even_context(text_config) or limit)
    tools = tool_format(tokenizer, settings.tool_parser)
    encoder = PromptEncoder(
        tokenizer,
        vocabulary=vocabulary,
        max_context=context,
        vision=vision,
        tools=tools,
    )
    folders = {adapter.name: adapter.source for adapter in settings.adapters}
    adapters = AdapterSeam(model, folders) if folders else None
    return BatchedTextService(
        LanguageModelInfo(
            name=settings.name,
            engine=settings.engine,
            created=int(time.time()),
            max_context=context,
            policies=plans.usable,
            capabilities=_capabilities(encoder, tools),
            embedding_width=int(text_config.hidden_size),
            sees=vision is not None,
            tools=tools,
        ),
        encoder,
        TransformersEngine(
            model,
            plans.bank,
            capacity=config.server.max_batch,
            vision=vision,
            adapters=adapters,
        ),
        plans,
        ConstraintCompiler(tokenizer, vocabulary, ends),
        end_tokens=ends,
        prefill_tokens=config.server.max_prefill_tokens,
        queue_limit=config.server.queue_limit,
        record=record,
        embedder=StateEmbedder(model, settings.pooling or "mean", vision),
        adapters=settings.adapters,
    )


def _capabilities(encoder: PromptEncoder, tools: ToolFormat | None) -> tuple[Capability, ...]:
    """What requests can ask a language model of this engine for."""
    chat: tuple[Capability, ...] = ("chat",) if encoder.chats else ()
    calls: tuple[Capability, ...] = ("tools",) if chat and tools is not None else ()
    return (*chat, *calls, "completions", "structured_output", "embeddings")
