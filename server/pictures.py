"""A served picture model: requests join one running batch between two denoising steps.

One thread owns the engine. A prompt is screened when it joins: rows that are blocked leave before
any step, a prompt that could not be refined is blocked or replaced, and the rest are drawn. A row
whose numbers are no longer numbers leaves too. Pictures go out as pixels; files are made of them
elsewhere.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Container, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from guard.errors import GuardError, RequestError, UnknownPolicy
from guard.picture_plan import Decision, PicturePlan, PicturePlans
from guard.verdict import Verdict
from server.errors import EngineFailed, PictureBlocked
from server.loop import BatchRow, EngineLoop, guard_failed
from server.service import Drawn, PictureInfo, PictureRequest
from steering.engines.diffusion.engine import DiffusionEngine, PictureStart
from steering.prompted import PromptReading

Record = Callable[[PictureRequest, Verdict], None]


class Canvas(BatchRow):
    """A request for one picture on its way."""

    request: PictureRequest
    plan: PicturePlan

    def __init__(
        self,
        request: PictureRequest,
        plan: PicturePlan,
        loop: asyncio.AbstractEventLoop,
        hang_up: Callable[[Canvas], None],
    ) -> None:
        super().__init__(loop)
        self.request, self.plan, self._hang_up = request, plan, hang_up
        self.blocked = False
        self.pixels: NDArray[np.uint8] | None = None

    @property
    def over(self) -> bool:
        return self.blocked or self.pixels is not None or self.error is not None

    def settle(self, decision: Decision) -> None:
        """Take in what was decided about the prompt that is to be drawn."""
        if decision == "fail":
            self.error = guard_failed()
        self.blocked = decision == "block"

    def finish(self, verdict: Verdict) -> None:
        """Send the picture, or what ended the row without one; nothing where nobody waits."""
        if self.error is not None:
            self.send_error(self.error, verdict)
        elif self.blocked:
            why = "could not refine the prompt, and blocks it" if self.plan.acts else "blocks it"
            self.send(PictureBlocked(f"A guard of this policy {why}.", verdict=verdict))
        elif self.pixels is not None:
            self.send(Drawn(self.pixels, verdict))

    async def drawn(self) -> Drawn:
        event = await self.next_event()
        if isinstance(event, GuardError):
            raise event
        assert isinstance(event, Drawn)
        return event

    async def aclose(self) -> None:
        if not self.ended:
            self._hang_up(self)


class DrawingService(EngineLoop[Canvas, DiffusionEngine]):
    """A PictureService over a DiffusionEngine. Built on any thread, used from one event loop."""

    def __init__(
        self,
        info: PictureInfo,
        engine: DiffusionEngine,
        plans: PicturePlans,
        *,
        queue_limit: int,
        record: Record,
    ) -> None:
        super().__init__(info.name, engine, queue_limit=queue_limit, record=record)
        self.info = info
        self._plans = plans
        self._thread.start()

    # -- called from the event loop -------------------------------------------------------------

    def submit(self, requests: Sequence[PictureRequest]) -> Sequence[Canvas]:
        loop = asyncio.get_running_loop()
        rows = [Canvas(request, self._admit(request), loop, self._hang_up) for request in requests]
        self._take(rows)
        return rows

    def _admit(self, request: PictureRequest) -> PicturePlan:
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

    def _join(self, joining: list[Canvas]) -> None:
        decisions: dict[Canvas, Decision] = {}
        fresh = {row: start for row in joining if (start := self._checked(row))}
        for row, seen in self._start(fresh):
            row.readings = seen
            decisions[row] = row.plan.decide(seen)
        again = {row: start for row in decisions if (start := _again(row, decisions[row]))}
        if again:
            self._drop([index for index, row in enumerate(self._running) if row in again])
            for row, seen in self._start(again):
                decisions[row] = row.plan.last.decide(seen)
                if decisions[row] != "draw":
                    row.plan, row.readings = row.plan.last, seen
        for row, decision in decisions.items():
            row.settle(decision)
        self._spoil()
        self._leave([index for index, row in enumerate(self._running) if row.over])

    def _checked(self, row: Canvas) -> PictureStart | None:
        """How the row starts; None where the engine does not take it, which refuses the request."""
        start = _start(row, row.request.prompt)
        try:
            self._engine.check(start)
        except ValueError as error:
            self._fail(row, RequestError(f"the model cannot draw this: {error}"))
            return None
        return start

    def _start(
        self, starts: Mapping[Canvas, PictureStart]
    ) -> list[tuple[Canvas, Mapping[str, PromptReading]]]:
        """Add these rows to the engine, and give what their guards have read."""
        readings = self._engine.start(list(starts.values()))
        self._running.extend(starts)
        return list(zip(starts, readings, strict=True))

    def _advance(self) -> None:
        done = self._engine.step()
        self._spoil()
        whole = [index for index in done if not self._running[index].over]
        if whole:
            for index, pixels in zip(whole, self._engine.pictures(whole), strict=True):
                self._running[index].pixels = pixels
        self._leave([index for index, row in enumerate(self._running) if row.over])

    def _spoil(self) -> None:
        """Let no row go on that has met NaN."""
        for row, spoilt in zip(self._running, self._engine.invalid, strict=True):
            if spoilt and not row.over:
                row.error = EngineFailed("the model met NaN on this request: there is no picture")

    def _read(self, index: int) -> None:
        """Nothing: guards read the prompt when it joins, and have been asked there."""


def _start(row: Canvas, prompt: str, without: Container[str] = ()) -> PictureStart:
    request = row.request
    return PictureStart(
        prompt=prompt,
        negative_prompt=request.negative_prompt,
        seed=request.seed,
        steps=request.steps,
        guidance=request.guidance,
        guards=[guard for guard in row.plan.rows() if guard.name not in without],
    )


def _again(row: Canvas, decision: Decision) -> PictureStart | None:
    """How a row is to be started again, where what was decided takes that.

    Guards that met NaN, and whose policy fails open, are left out.
    """
    spoilt = {name for name, reading in row.readings.items() if not reading.valid}
    if decision == "replace" and row.plan.replacement is not None:
        return _start(row, row.plan.replacement, spoilt)
    return _start(row, row.request.prompt, spoilt) if decision == "draw" and spoilt else None
