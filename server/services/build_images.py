"""From the settings of a model that makes images to its running service. Needs diffusers."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from guard.config.schema import Config, ModelConfig
from guard.models.sources import resolve_source
from guard.plans.images import ImagePlans
from guard.plans.language import LanguagePlans
from guard.verdict import Verdict
from server.services.images import BatchedImageService
from server.services.interface import ImageModelInfo, ImageRowRequest
from server.services.prompts import require_fast
from server.services.token_images import TokenImageService
from steering.engines.diffusion.engine import DiffusionEngine
from steering.engines.diffusion.families import family_of
from steering.engines.diffusion.loading import load_pipeline
from steering.engines.transformers.engine import TransformersEngine
from steering.engines.transformers.image_tokens import ImageTokens
from steering.engines.transformers.loading.models import load_language_model
from steering.engines.transformers.tokens import PromptTokenizer


def drawing_service(
    config: Config, settings: ModelConfig, record: Callable[[ImageRowRequest, Verdict], None]
) -> BatchedImageService:
    """Raises GuardError, and ValueError or RuntimeError where the model cannot be run."""
    pipeline = load_pipeline(
        resolve_source(settings.source), dtype=settings.dtype, device=settings.device
    )
    family = family_of(pipeline)
    if family.frames is not None:
        raise ValueError("it makes videos, and this server sends images only")
    plans = ImagePlans(config, family, name=settings.name)
    engine = DiffusionEngine(family, plans.stacks, capacity=config.server.max_batch)
    steps, guidance = family.defaults
    return BatchedImageService(
        ImageModelInfo(
            name=settings.name,
            engine=settings.engine,
            created=int(time.time()),
            policies=plans.usable,
            width=family.width,
            height=family.height,
            steps=settings.steps or min(steps, settings.max_steps),
            guidance=guidance if settings.guidance_scale is None else settings.guidance_scale,
            max_steps=settings.max_steps,
            distilled=family.distilled,
            embeddings=family.embedding_limits,
        ),
        engine,
        plans,
        queue_limit=config.server.queue_limit,
        record=record,
    )


def writing_service(
    config: Config, settings: ModelConfig, record: Callable[[ImageRowRequest, Verdict], None]
) -> TokenImageService:
    """The service of a language model that writes images. Raises as `drawing_service`."""
    for name in ("adapters", "tool_parser", "pooling", "quantization", "device_map", "max_context"):
        if getattr(settings, name):
            raise ValueError(f"{name!r} is for models of text, and it writes images: leave it out")
    folder = Path(resolve_source(settings.source))
    model, tokenizer, _ = load_language_model(
        str(folder), dtype=settings.dtype, device=settings.device
    )
    require_fast(tokenizer)
    images = ImageTokens.load(folder, model.get_input_embeddings().num_embeddings, model.device)
    longest = model.config.max_position_embeddings - images.count
    if longest < 1:
        raise ValueError(f"its images have {images.count} tokens: there is no room for a prompt")
    plans = LanguagePlans(config, model, name=settings.name)
    width, height = images.size
    return TokenImageService(
        ImageModelInfo(
            name=settings.name,
            engine=settings.engine,
            created=int(time.time()),
            policies=plans.usable,
            capabilities=("images",),
            width=width,
            height=height,
            denoises=False,
        ),
        PromptTokenizer(tokenizer),
        images,
        TransformersEngine(model, plans.bank, capacity=config.server.max_batch),
        plans,
        longest=longest,
        queue_limit=config.server.queue_limit,
        record=record,
    )
