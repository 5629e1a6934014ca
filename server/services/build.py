"""From a configuration to running services: models loaded, guards stacked, engines started."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from guard.config.schema import Config, ModelConfig
from guard.errors import GuardError, ModelError
from guard.models.chat import end_tokens
from guard.models.sources import resolve_source
from guard.plans.language import LanguagePlans
from guard.verdict import Verdict
from server.services.interface import AnyRequest, LanguageModelInfo, Service
from server.services.prompts import PromptEncoder
from server.services.text import BatchedTextService
from steering.engines.transformers.engine import TransformersEngine
from steering.engines.transformers.loading import load_language_model

Recorded = Callable[[AnyRequest, Verdict], None]
"""Where every row hands its one verdict."""


def build_services(config: Config, record: Recorded) -> Mapping[str, Service]:
    """One service a configured model, by name. Raises ModelError where one cannot be loaded."""
    services: dict[str, Service] = {}
    try:
        for model in config.models:
            services[model.name] = _service(config, model, record)
    except BaseException:
        for service in services.values():
            service.close()
        raise
    return services


def _service(config: Config, settings: ModelConfig, record: Recorded) -> Service:
    try:
        return _built(config, settings, record)
    except GuardError:
        raise
    except ImportError as error:
        extra = "vllm" if settings.engine == "vllm" else "diffusers"
        raise ModelError(
            f"model {settings.name}: {error.name} is not installed: "
            f"pip install 'inference-guard[serve,{extra}]'"
        ) from error
    except (ValueError, RuntimeError, AssertionError) as error:
        # RuntimeError, AssertionError: what torch says of a device that is not there, or full
        raise ModelError(f"model {settings.name}: {error}") from error


def _built(config: Config, settings: ModelConfig, record: Recorded) -> Service:
    if settings.kind == "images":
        # imported where it is needed: a server of language models needs no diffusers
        from server.services.build_images import drawing_service

        return drawing_service(config, settings, record)
    if settings.engine == "vllm":
        # as is vLLM, whose environment is one of its own
        from server.vllm.build import vllm_service

        return vllm_service(config, settings, record)
    return _batching_service(config, settings, record)


def _batching_service(config: Config, settings: ModelConfig, record: Recorded) -> Service:
    source = resolve_source(settings.source)
    model, tokenizer = load_language_model(source, dtype=settings.dtype, device=settings.device)
    if not tokenizer.is_fast:
        raise ValueError("it has no tokenizer.json: text cannot be streamed without")
    plans = LanguagePlans(config, model, name=settings.name)
    own = getattr(model.config, "max_position_embeddings", 2048)
    context = min(own, settings.max_context or own)
    return BatchedTextService(
        LanguageModelInfo(
            name=settings.name,
            engine=settings.engine,
            created=int(time.time()),
            max_context=context,
            policies=plans.usable,
        ),
        PromptEncoder(
            tokenizer,
            vocabulary=model.get_input_embeddings().num_embeddings,
            max_context=context,
        ),
        TransformersEngine(model, plans.bank, capacity=config.server.max_batch),
        plans,
        end_tokens=end_tokens(model.generation_config.eos_token_id, tokenizer),
        queue_limit=config.server.queue_limit,
        record=record,
    )
