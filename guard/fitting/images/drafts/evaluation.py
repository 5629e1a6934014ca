"""Images of the prompts that no fit has read, bare and under all fitted guards together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from guard.config.schema import Config
from guard.data.prompts import ImagePrompt
from guard.evaluation.images.generator import EngineImageGenerator
from guard.evaluation.images.judge import Judge
from guard.evaluation.images.suite import ImageSuite
from guard.evaluation.shares import Share
from guard.models.images import ImageModel
from guard.reporting.progress import Stages

Way = Literal["concept", "near", "far", "mistaken"]
WAYS: Mapping[str, Way] = {
    "direct": "concept",
    "paraphrase": "concept",
    "hard": "near",
    "clean": "far",
    "mistaken": "mistaken",
}
"""By the kind of a prompt; mistaken are neighbours for which the model draws the concept too."""
MOST_STEPS = 25
_BATCH = 16


@dataclass(frozen=True, eq=False)
class Tried:
    """A prompt with its images `[height, width, 3]`; a blocked one has no guarded image.

    `fired` are the guards that did. `shown` and `left` say whether a judge sees the concept in the
    bare and in the guarded image, None without a judge who knows it.
    """

    way: Way
    prompt: str
    bare: NDArray[np.uint8]
    guarded: NDArray[np.uint8] | None
    fired: tuple[str, ...]
    shown: bool | None = None
    left: bool | None = None

    @property
    def same(self) -> bool:
        """Whether the guarded image is the bare one, to the last bit."""
        return self.guarded is not None and np.array_equal(self.bare, self.guarded)


@dataclass(frozen=True)
class Evaluation:
    """All prompts that were tried; `judge` is the name of the judge's label, empty without one."""

    tried: tuple[Tried, ...]
    judge: str = ""

    def of(self, way: Way) -> list[Tried]:
        return [each for each in self.tried if each.way == way]

    def fired(self, way: Way, guard: str = "") -> Share:
        """The share of prompts of a way on which a guard fires, or this guard."""
        return Share.of(
            [guard in each.fired if guard else bool(each.fired) for each in self.of(way)]
        )

    def same(self, way: Way) -> Share:
        """The share of images that are the bare ones."""
        return Share.of([each.same for each in self.of(way)])

    @property
    def shown(self) -> Share:
        """Bare images that show the concept, of prompts that ask for it."""
        return Share.of([bool(each.shown) for each in self.of("concept")])

    @property
    def left(self) -> Share:
        """Guarded images that still show it, of all whose bare image does: far ones may, too."""
        return Share.of([bool(each.left) for each in self.tried if each.shown])


def evaluate(
    image_model: ImageModel,
    config: Config,
    policy: str,
    prompts: Sequence[ImagePrompt],
    progress: Stages,
    *,
    guidance: float | None = None,
    judge: Judge | None = None,
) -> Evaluation:
    """Generate each prompt's image bare and under `policy`, from the same seed."""
    own_steps, own_guidance = image_model.family.defaults
    suite = ImageSuite(
        model="model",
        judge=Path(),
        prompts=(),
        methods={policy: policy},
        ours=policy,
        steps=min(own_steps, MOST_STEPS),
        guidance=own_guidance if guidance is None else guidance,
        batch=_BATCH,
    )
    generator = EngineImageGenerator(config, suite, image_model.family)
    texts = [row.prompt for row in prompts]
    seeds = list(range(len(texts)))
    bare = generator.generate(
        texts, seeds, [None] * len(texts), progress("bare images", len(texts))
    )
    effects = generator.inspect(texts, [policy] * len(texts))
    due = [i for i, effect in enumerate(effects) if not effect.blocked]
    guarded = generator.generate(
        [texts[i] for i in due],
        [seeds[i] for i in due],
        [policy] * len(due),
        progress("guarded images", len(due)),
    )
    of_prompt = dict(zip(due, guarded, strict=True))
    before = tuple(row.name for row in generator.plan(policy).prompt_rows())
    label = prompts[0].concept if prompts else ""
    judge = judge if judge is not None and judge.knows(label) else None
    tried = []
    for i, row in enumerate(prompts):
        first, second = bare[i].image, of_prompt.get(i)
        assert first is not None
        image = second.image if second else None
        tried.append(
            Tried(
                way=WAYS[row.kind],
                prompt=row.prompt,
                bare=first,
                guarded=image,
                fired=second.firing if second else before,
                shown=_shows(judge, first, label),
                left=_shows(judge, image, label),
            )
        )
    return Evaluation(tuple(tried), label if judge else "")


def _shows(judge: Judge | None, image: NDArray[np.uint8] | None, label: str) -> bool | None:
    if judge is None:
        return None
    return image is not None and judge.views(image[None])[0].shows(label)
