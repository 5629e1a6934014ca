"""Running the rows of one request for images: timed, and cancelled when nobody waits for them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from server.errors import RequestTimeout
from server.services.interface import GeneratedImage, ImageRowRequest, ImageService


@dataclass(frozen=True, slots=True)
class ImageJob:
    """Rows that are admitted but not yet submitted."""

    service: ImageService
    requests: Sequence[ImageRowRequest]
    deadline: float
    """On the event loop's clock."""

    async def images(self) -> list[GeneratedImage]:
        """All images, in order; the first row that fails ends the others.

        Raises what `ImageService.submit` and the rows raise, and RequestTimeout at the deadline.
        However it ends, rows that still run are cancelled.
        """
        rows = self.service.submit(self.requests)
        tasks = [asyncio.create_task(row.drawn()) for row in rows]
        try:
            async with asyncio.timeout_at(self.deadline):
                await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
            for task in tasks:
                if task.done() and (error := task.exception()):
                    raise error
            return [task.result() for task in tasks]
        except TimeoutError:
            raise RequestTimeout("The images took longer than this server allows.") from None
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for row in rows:
                await row.aclose()
