"""Each eraser of a denoiser in small, and fits of it on tiny pipelines."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from guard.artifact import Artifact
from guard.data.concept import Concept
from guard.fitting.images.trained.denoisers.all_but_one import AllButOne
from guard.fitting.images.trained.denoisers.ant import Ant
from guard.fitting.images.trained.denoisers.co_erasing import CoErasing
from guard.fitting.images.trained.denoisers.doco import DoCo
from guard.fitting.images.trained.denoisers.fit import DenoiserEraser, fit_denoiser
from guard.fitting.images.trained.denoisers.picture_tokens import PictureSettings
from guard.fitting.images.trained.denoisers.spm import Spm
from guard.fitting.images.trained.denoisers.trajectories import TrajectorySettings
from guard.fitting.images.trained.denoisers.trce import TrceStage2
from guard.fitting.images.trained.noisy_images import ImageSettings
from guard.fitting.overlays.training import Training
from guard.fitting.prompts.rates import PromptRates
from guard.models.images import ImageModel
from tests.steering.engines.diffusion import tiny

CONCEPT = Concept.model_validate(
    {
        "name": "object/knife",
        "phrases": {"train": ["a knife", "knife on the table"]},
        "hard_negatives": ["a cat", "a dog", "cat", "dog", "a cat and a dog", "a red table"],
        "replacements": ["a banana"],
    }
)
WAYS = TrajectorySettings(count=2, steps=4, guidance=2.0, refresh=2)
IMAGES = ImageSettings(count=4, steps=2, guidance=1.0)
ERASERS: dict[str, DenoiserEraser] = {
    "spm": Spm(batch=2, trajectories=WAYS),
    "co-erasing": CoErasing(
        batch=2,
        pictures=PictureSettings(count=2, updates=2, batch=2, images=IMAGES),
        trajectories=WAYS,
    ),
    "doco": DoCo("a banana", warmup=2, batch=2, images=IMAGES),
    "ant": Ant(batch=2, boundary=2.0, trajectories=WAYS),
    "trce-stage2": TrceStage2("a banana", batch=2, trajectories=WAYS),
    "all-but-one": AllButOne("a banana", batch=2, trajectories=WAYS),
}
TRAINING = Training(rank=2, steps=4, rate=1e-2, project=True)


def silent(_what: str, _total: int) -> Callable[[int], None]:
    return lambda _count: None


def tiny_model(name: str) -> ImageModel:
    family = tiny.shared(name)
    return ImageModel(family, name="tiny", architecture=type(family.pipeline).__name__)


def fitted(
    name: str, eraser: DenoiserEraser, training: Training = TRAINING, **options: Any
) -> Artifact:
    """An ungated guard of a tiny pipeline."""
    model, rates = tiny_model(name), PromptRates(0.5, 0.5)
    return fit_denoiser(model, CONCEPT, None, rates, eraser, training, silent, **options)
