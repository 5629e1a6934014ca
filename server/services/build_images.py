"""From the settings of an image model to its running service. Needs diffusers."""

from __future__ import annotations

import time
from collections.abc import Callable

from guard.config.schema import Config, ModelConfig
from guard.models.sources import resolve_source
from guard.plans.images import ImagePlans
from guard.verdict import Verdict
from server.services.images import BatchedImageService
from server.services.interface import ImageModelInfo, ImageRowRequest
from steering.engines.diffusion.engine import DiffusionEngine
from steering.engines.diffusion.families import family_of
from steering.engines.diffusion.loading import load_pipeline


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
