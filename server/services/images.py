"""A served image model: requests join one running batch between two denoising steps.

One thread owns the engine. A prompt is screened when it joins: rows that are blocked leave before
any step, a prompt that could not be refined is blocked or replaced, and the rest are drawn. What is
drawn is screened again where the policy has guards that look at images: it may be blocked, or the
replacement drawn, which is screened in its turn. A row whose numbers are no longer numbers leaves
too. Images go out as pixels; files are made of them elsewhere.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from guard.errors import GuardError, RequestError, UnknownPolicy
from guard.plans.images import Decision, ImagePlan, ImagePlans
from guard.verdict import Verdict
from server.errors import EngineFailed, ImageBlocked
from server.services.interface import GeneratedImage, ImageModelInfo, ImageRowRequest, SourceImage
from server.services.loop import BatchRow, EngineLoop, guard_failed
from server.wire.embeddings import invalid
from steering.engines.diffusion.engine import DiffusionEngine, ImageStart
from steering.engines.diffusion.sampling.trajectories import (
    EditedImage,
    InitialState,
    InvertedImage,
)
from steering.images.embedding import ImageReading
from steering.images.textual_inversion import EmbeddingError

Record = Callable[[ImageRowRequest, Verdict], None]


class ImageRow(BatchRow):
    """A request for one image on its way."""

    request: ImageRowRequest
    plan: ImagePlan

    def __init__(
        self,
        request: ImageRowRequest,
        plan: ImagePlan,
        loop: asyncio.AbstractEventLoop,
        hang_up: Callable[[ImageRow], None],
    ) -> None:
        super().__init__(loop)
        self.request, self.plan, self._hang_up = request, plan, hang_up
        self.blocked = self.replaced = False
        self.beginning: InitialState | None = None
        self.pixels: NDArray[np.uint8] | None = None
        self.masks: Mapping[str, NDArray[np.uint8]] = {}

    @property
    def over(self) -> bool:
        return self.blocked or self.pixels is not None or self.error is not None

    def settle(self, decision: Decision) -> None:
        """Take in what was decided about the prompt or the image."""
        if decision == "fail":
            self.error = guard_failed()
        self.blocked = decision in ("block", "replace")

    def decide(self, readings: Mapping[str, ImageReading]) -> Decision:
        """What its guards' readings come to.

        What is told of a replacement is why it was drawn; one that does not pass either is told of
        in its own readings.
        """
        if not self.replaced:
            self.readings = {**self.readings, **readings}
            return self.plan.decide(readings)
        decision = self.plan.last.decide(readings)
        if decision == "draw":
            self.readings = {**readings, **self.readings}
        else:
            self.plan, self.readings = self.plan.last, readings
        return decision

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
        if any(told.fired and told.position for told in self.readings.values()):
            return "finds its concept in the image, and blocks it"
        return "could not refine the prompt, and blocks it" if self.plan.acts else "blocks it"

    async def image(self) -> GeneratedImage:
        event = await self.next_event()
        if isinstance(event, GuardError):
            raise event
        assert isinstance(event, GeneratedImage)
        return event

    async def aclose(self) -> None:
        if not self.ended:
            self._hang_up(self)


class BatchedImageService(EngineLoop[ImageRow, DiffusionEngine]):
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
        try:
            plan = self._plans[request.policy]
        except KeyError:
            raise UnknownPolicy(f"there is no policy {request.policy!r}", param="policy") from None
        plan.require_fit(self.info.name)
        if plan.guides and request.guidance <= 1:
            raise RequestError(
                f"the policy {request.policy!r} acts on the guidance: ask for a 'guidance_scale' "
                "of more than 1",
                param="guidance_scale",
            )
        return plan

    # -- the engine's thread --------------------------------------------------------------------

    def _join(self, joining: list[ImageRow]) -> None:
        self._draw({row: start for row in joining if (start := self._checked(row))})

    def _draw(self, fresh: Mapping[ImageRow, ImageStart]) -> None:
        """Start these rows, once more where what their guards read on the prompt takes that."""
        decisions = self._start(fresh)
        again = {row: start for row in decisions if (start := _again(row, decisions[row]))}
        self._drop([index for index, row in enumerate(self._running) if row in again])
        decisions |= self._start(again)
        for row, decision in decisions.items():
            row.settle(decision)
        self._spoil(self._engine.invalid)
        self._leave([index for index, row in enumerate(self._running) if row.over])

    def _checked(self, row: ImageRow) -> ImageStart | None:
        """How the row starts; None where the engine does not take it, which refuses the request."""
        try:
            row.beginning = self._begun(row.request.source)
            start = _own(row)
            self._engine.check(start)
        except EmbeddingError as error:
            self._fail(row, invalid(str(error)))
            return None
        except ValueError as error:
            self._fail(row, RequestError(f"the model cannot draw this: {error}"))
            return None
        return start

    def _begun(self, source: SourceImage | None) -> InitialState | None:
        """What a row starts from, where that is an image. Raises ValueError."""
        if source is None:
            return None
        pixels = torch.from_numpy(source.pixels.copy())[None].float() / 255
        latents = self._engine.family.encode_image(pixels)[0]
        if source.strength is None:
            return InvertedImage(latents)
        return EditedImage(latents, source.strength)

    def _start(self, starts: Mapping[ImageRow, ImageStart]) -> dict[ImageRow, Decision]:
        """Add these rows to the engine, and decide by what their guards read on the prompt."""
        if not starts:
            return {}
        readings = self._engine.start(list(starts.values()))
        self._running.extend(starts)
        return {row: row.decide(seen) for row, seen in zip(starts, readings, strict=True)}

    def _advance(self) -> None:
        done = self._engine.step()
        # a guard that met NaN in the image is for its policy to decide
        self._spoil(self._engine.spoilt)
        drawn = {i: row for i in done if not (row := self._running[i]).over}
        late = {row: self._screened(i) for i, row in drawn.items() if row.plan.screens}
        again = {row: start for row, said in late.items() if (start := _replacement(row, said))}
        for row, decision in late.items():
            if row not in again:
                row.settle(decision)
        whole = [i for i, row in drawn.items() if not row.over and row not in again]
        if whole:
            for index, pixels in zip(whole, self._engine.images(whole), strict=True):
                row = self._running[index]
                row.pixels, row.masks = pixels, self._masks(index) if row.request.debug else {}
        self._leave([index for index, row in enumerate(self._running) if row.over])
        self._drop([index for index, row in enumerate(self._running) if row in again])
        self._draw(again)

    def _masks(self, index: int) -> Mapping[str, NDArray[np.uint8]]:
        """Where the guards of a row have written."""
        masks = self._engine.masks(index)
        return {name: (255 * m).round().byte().cpu().numpy() for name, m in masks.items()}

    def _screened(self, index: int) -> Decision:
        """What becomes of a row that is drawn, now that its guards have seen the image."""
        return self._running[index].decide(self._engine.readings(index))

    def _spoil(self, spoilt: Sequence[bool]) -> None:
        """Let none of these rows go on, which have met NaN."""
        for row, lost in zip(self._running, spoilt, strict=True):
            if lost and not row.over:
                row.error = EngineFailed("the model met NaN on this request: there is no image")

    def _keep_readings(self, index: int) -> None:
        """Of a row that nobody waits for any more, what its guards have read on the way so far.

        All else has been asked when the row joined, or when it was complete.
        """
        row = self._running[index]
        if not (row.over or row.replaced):
            row.readings = {**row.readings, **self._engine.readings(index)}


def _own(row: ImageRow, without: Container[str] = ()) -> ImageStart:
    """How the row starts with what it has asked for."""
    request = row.request
    embeddings = {name: torch.tensor(vectors) for name, vectors in request.embeddings.items()}
    return replace(_start(row, request.prompt, without), embeddings=embeddings)


def _start(row: ImageRow, prompt: str, without: Container[str] = ()) -> ImageStart:
    request = row.request
    return ImageStart(
        prompt=prompt,
        negative_prompt=request.negative_prompt,
        seed=request.seed,
        steps=request.steps,
        guidance=request.guidance,
        guards=[guard for guard in row.plan.rows() if guard.name not in without],
        # a replacement shows nothing of the image: that may be what is to be replaced
        beginning=None if row.replaced else row.beginning,
    )


def _again(row: ImageRow, decision: Decision) -> ImageStart | None:
    """How a row is to be started again, where what was decided of its prompt takes that.

    Guards that met NaN, and whose policy fails open, are left out.
    """
    spoilt = _spoilt(row)
    if decision == "draw" and spoilt and not row.replaced:
        return _own(row, spoilt)
    return _replacement(row, decision)


def _replacement(row: ImageRow, decision: Decision) -> ImageStart | None:
    """How the policy's replacement starts, where that is to be drawn."""
    if decision != "replace" or row.plan.replacement is None:
        return None
    row.replaced = True
    return _start(row, row.plan.replacement, _spoilt(row))


def _spoilt(row: ImageRow) -> set[str]:
    return {name for name, reading in row.readings.items() if not reading.valid}
