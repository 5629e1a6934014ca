"""The rows of one HTTP request for images: submitted, timed, cancelled when the client is gone."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from server.errors import RequestTimeout
from server.services.interface import GeneratedImage, ImageRowRequest, ImageService


@dataclass(frozen=True, slots=True)
class ImageJob:
    """The image rows of one request, admitted but not yet submitted."""

    service: ImageService
    requests: Sequence[ImageRowRequest]
    deadline: float
    """On the event loop's clock."""

    async def images(self) -> list[GeneratedImage]:
        """Submit the rows and return all images, in order.

        Raises the errors of `ImageService.submit`, the error of the first row that fails, and
        RequestTimeout at the deadline. Rows that still run then are cancelled.
        """
        rows = self.service.submit(self.requests)
        tasks = [asyncio.create_task(row.image()) for row in rows]
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
