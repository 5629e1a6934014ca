"""What the rows of all services of images have in common."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from guard.errors import GuardError
from guard.plans.base import Plan
from server.services.interface import GeneratedImage, ImageRowRequest
from server.services.loop import BatchRow


class ImageBatchRow(BatchRow):
    """A request for one image on its way: an `ImageRowHandle`."""

    request: ImageRowRequest

    def __init__(
        self,
        request: ImageRowRequest,
        plan: Plan[Any],
        loop: asyncio.AbstractEventLoop,
        cancel: Callable[[Any], None],
    ) -> None:
        super().__init__(loop)
        self.request, self.plan, self._cancel = request, plan, cancel
        self.pixels: NDArray[np.uint8] | None = None

    async def image(self) -> GeneratedImage:
        event = await self.next_event()
        if isinstance(event, GuardError):
            raise event
        assert isinstance(event, GeneratedImage)
        return event

    async def aclose(self) -> None:
        if not self.ended:
            self._cancel(self)
