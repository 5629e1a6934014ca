"""From the settings of a picture model to its running service. Needs diffusers."""

from __future__ import annotations

import time
from collections.abc import Callable

from guard.config import Config, ModelConfig
from guard.models import resolve_source
from guard.picture_plan import PicturePlans
from guard.verdict import Verdict
from server.pictures import DrawingService
from server.service import PictureInfo, PictureRequest
from steering.engines.diffusion.engine import DiffusionEngine
from steering.engines.diffusion.families import family_of
from steering.engines.diffusion.loading import load_pipeline


def drawing_service(
    config: Config, settings: ModelConfig, record: Callable[[PictureRequest, Verdict], None]
) -> DrawingService:
    """Raises GuardError, and ValueError or RuntimeError where the model cannot be run."""
    pipeline = load_pipeline(
        resolve_source(settings.source), dtype=settings.dtype, device=settings.device
    )
    family = family_of(pipeline)
    if hasattr(family, "frames"):
        raise ValueError("it makes videos, and this server sends pictures only")
    plans = PicturePlans(config, family, name=settings.name)
    engine = DiffusionEngine(
        family,
        plans.bank,
        capacity=config.server.max_batch,
        guides=plans.guides,
        finished=plans.finished,
        erasers=plans.erasers,
        overlays=plans.overlays,
    )
    steps, guidance = family.defaults
    return DrawingService(
        PictureInfo(
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
