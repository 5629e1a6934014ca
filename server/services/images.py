"""A served image model: requests join one running batch between two denoising steps.

One thread owns the engine. A prompt is screened when it joins: rows that are blocked leave before
any step, a prompt that could not be refined is blocked or replaced, and the rest are drawn. What is
drawn is screened again where the policy has guards that look at images: it may be blocked, or the
replacement drawn, which is screened in its turn. A row whose numbers are no longer numbers leaves
too. Images go out as pixels; files are made of them elsewhere.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from guard.errors import RequestError
from guard.plans.fallback import Fallback, Next
from guard.plans.images import ImagePlan, ImagePlans
from guard.verdict import Verdict
from server.errors import EngineFailed, ImageBlocked
from server.services.following import FollowsPolicies
from server.services.image_rows import ImageBatchRow
from server.services.interface import GeneratedImage, ImageModelInfo, ImageRowRequest, SourceImage
from server.services.loop import EngineLoop, guard_failed
from server.wire.embeddings import invalid
from steering.engines.diffusion.engine import DiffusionEngine, ImageStart
from steering.engines.diffusion.sampling.trajectories import (
    EditedImage,
    InitialState,
    InvertedImage,
)
from steering.images.textual_inversion import EmbeddingError

Record = Callable[[ImageRowRequest, Verdict], None]


class ImageRow(ImageBatchRow):
    """A request for one image, which is denoised."""

    plan: ImagePlan

    def __init__(
        self,
        request: ImageRowRequest,
        plan: ImagePlan,
        loop: asyncio.AbstractEventLoop,
        cancel: Callable[[ImageRow], None],
    ) -> None:
        super().__init__(request, plan, loop, cancel)
        self.fallback = Fallback(plan, request.prompt)
        self.blocked = False
        self.initial: InitialState | None = None
        self.masks: Mapping[str, NDArray[np.uint8]] = {}

    @property
    def over(self) -> bool:
        return self.blocked or self.pixels is not None or self.error is not None

    def settle(self, following: Next) -> None:
        """Take in what follows from the readings of the prompt or of the image."""
        self.plan, self.readings = self.fallback.plan, self.fallback.readings
        if following == "fail":
            self.error = guard_failed()
        self.blocked = following == "block"

    def start(self) -> ImageStart:
        """How the engine starts the row: as asked, or with what stands in the prompt's place."""
        request, fallback = self.request, self.fallback
        learned = {} if fallback.replaced else request.embeddings
        return ImageStart(
            prompt=fallback.prompt,
            negative_prompt=request.negative_prompt,
            seed=request.seed,
            steps=request.steps,
            guidance=request.guidance,
            guards=fallback.guards,
            embeddings={name: torch.tensor(vectors) for name, vectors in learned.items()},
            # a replacement shows nothing of the image: that may be what is to be replaced
            initial=None if fallback.replaced else self.initial,
        )

    def finish(self, verdict: Verdict) -> None:
        """Send the image, or what ended the row without one; nothing where nobody waits."""
        if self.error is not None:
            self.send_error(self.error, verdict)
        elif self.blocked:
            self.send(ImageBlocked(f"A guard of this policy {self._why}.", verdict=verdict))
        elif self.pixels is not None:
            self.send(GeneratedImage(self.pixels, verdict, self.masks))

    @property
    def _why(self) -> str:
        if any(reading.fired and reading.position for reading in self.readings.values()):
            return "finds its concept in the image, and blocks it"
        return "could not refine the prompt, and blocks it" if self.plan.acts else "blocks it"


class BatchedImageService(
    FollowsPolicies[ImagePlans, ImageModelInfo], EngineLoop[ImageRow, DiffusionEngine]
):
    """An ImageService over a DiffusionEngine. Built on any thread, used from one event loop."""

    def __init__(
        self,
        info: ImageModelInfo,
        engine: DiffusionEngine,
        plans: ImagePlans,
        *,
        queue_limit: int,
        record: Record,
    ) -> None:
        super().__init__(info.name, engine, queue_limit=queue_limit, record=record)
        self.info = info
        self._plans = plans
        self._thread.start()

    # -- called from the event loop -------------------------------------------------------------

    def submit(self, requests: Sequence[ImageRowRequest]) -> Sequence[ImageRow]:
        loop = asyncio.get_running_loop()
        rows = [ImageRow(request, self._admit(request), loop, self._cancel) for request in requests]
        self._enqueue(rows)
        return rows

    def _admit(self, request: ImageRowRequest) -> ImagePlan:
        """The plan of a request that this model can run."""
        plan = self._plans.admitted(request.policy, request.config)
        plan.require_fit(self.info.name)
        if plan.acts_on_guidance and request.guidance <= 1:
            raise RequestError(
                f"the policy {request.policy!r} acts on the guidance: ask for a 'guidance_scale' "
                "of more than 1",
                param="guidance_scale",
            )
        return plan

    # -- the engine's thread --------------------------------------------------------------------

    def _join(self, joining: list[ImageRow]) -> None:
        self._start([row for row in joining if self._admitted(row)])

    def _start(self, rows: Sequence[ImageRow]) -> None:
        """Start these rows, again while the readings of their prompts ask for it."""
        while rows:
            readings = self._engine.start([row.start() for row in rows])
            self._running.extend(rows)
            again = []
            for row, read in zip(rows, readings, strict=True):
                following = row.fallback.on_prompt(read)
                row.settle(following)
                if following == "again":
                    again.append(row)
            self._drop([index for index, row in enumerate(self._running) if row in again])
            rows = again
        self._spoil(self._engine.invalid)
        self._leave([index for index, row in enumerate(self._running) if row.over])

    def _admitted(self, row: ImageRow) -> bool:
        """Whether the engine takes the row; its request is refused where it does not."""
        try:
            row.initial = self._initial(row.request.source)
            self._engine.check(row.start())
        except EmbeddingError as error:
            self._fail(row, invalid(str(error)))
            return False
        except ValueError as error:
            self._fail(row, RequestError(f"the model cannot draw this: {error}"))
            return False
        return True

    def _initial(self, source: SourceImage | None) -> InitialState | None:
        """The initial state of a row that starts from an image. Raises ValueError."""
        if source is None:
            return None
        pixels = torch.from_numpy(source.pixels.copy())[None].float() / 255
        latents = self._engine.family.encode_image(pixels)[0]
        if source.strength is None:
            return InvertedImage(latents)
        return EditedImage(latents, source.strength)

    def _advance(self) -> None:
        done = self._engine.step()
        # a guard that met NaN in the image is for its policy to decide
        self._spoil(self._engine.spoilt)
        complete = {i: row for i in done if not (row := self._running[i]).over}
        again = []
        for index, row in complete.items():
            if not row.plan.inspects_images:
                continue
            following = row.fallback.on_output(self._engine.readings(index))
            row.settle(following)
            if following == "again":
                again.append(row)
        whole = [i for i, row in complete.items() if not row.over and row not in again]
        if whole:
            for index, pixels in zip(whole, self._engine.images(whole), strict=True):
                row = self._running[index]
                row.pixels, row.masks = pixels, self._masks(index) if row.request.debug else {}
        self._leave([index for index, row in enumerate(self._running) if row.over])
        self._drop([index for index, row in enumerate(self._running) if row in again])
        self._start(again)

    def _masks(self, index: int) -> Mapping[str, NDArray[np.uint8]]:
        """Where the guards of a row have written."""
        masks = self._engine.masks(index)
        return {name: (255 * m).round().byte().cpu().numpy() for name, m in masks.items()}

    def _spoil(self, spoilt: Sequence[bool]) -> None:
        """Let none of these rows go on, which have met NaN."""
        for row, lost in zip(self._running, spoilt, strict=True):
            if lost and not row.over:
                row.error = EngineFailed("the model met NaN on this request: there is no image")

    def _keep_readings(self, index: int) -> None:
        """Of a row that nobody waits for any more, the readings of its guards so far.

        All others were asked when the row joined, or when it was complete.
        """
        row = self._running[index]
        if not (row.over or row.fallback.replaced):
            row.readings = {**row.readings, **self._engine.readings(index)}
