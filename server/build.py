"""From a configuration to running services: models loaded, guards stacked, engines started."""

from __future__ import annotations

import time
from collections.abc import Mapping

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from guard.config import Config, ModelConfig
from guard.errors import ModelError
from guard.chat import end_tokens
from guard.models import resolve_source
from guard.plan import Plans
from server.batching import BatchingService, Record
from server.service import ModelInfo, Service
from steering.engines.transformers import TransformersEngine


def build_services(config: Config, record: Record) -> Mapping[str, Service]:
    """One service a configured model, by name. Raises ModelError where one cannot be loaded."""
    return {model.name: _service(config, model, record) for model in config.models}


def _service(config: Config, settings: ModelConfig, record: Record) -> Service:
    source = resolve_source(settings.source)
    device = settings.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
        model = AutoModelForCausalLM.from_pretrained(source, dtype=settings.dtype).to(device)
    except (OSError, ValueError) as error:
        raise ModelError(f"model {settings.name}: {error}") from error
    plans = Plans(config, model, name=settings.name)
    own = getattr(model.config, "max_position_embeddings", 2048)
    info = ModelInfo(
        name=settings.name,
        engine=settings.engine,
        created=int(time.time()),
        max_context=min(own, settings.max_context or own),
        policies=plans.usable,
    )
    return BatchingService(
        info,
        tokenizer,
        TransformersEngine(model, plans.bank, capacity=config.server.max_batch),
        plans,
        end_tokens=end_tokens(model, tokenizer),
        queue_limit=config.server.queue_limit,
        record=record,
    )
