"""The progress of an erasure as server-sent events, until it is in a final state."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from server.erasures.record import UNFINISHED
from server.erasures.service import Erasures
from server.errors import ClientGone
from server.services.text_jobs import until_disconnect
from server.wire.streams import frame


class ProgressStream(Response):
    """An event for each state and each part of a stage; the last one has the final state."""

    media_type = "text/event-stream"

    def __init__(self, erasures: Erasures, erasure: str) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._erasures, self._erasure = erasures, erasure

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with suppress(ClientGone):
            await until_disconnect(receive, self._stream(send))

    async def _stream(self, send: Send) -> None:
        start = {"status": self.status_code, "headers": self.raw_headers}
        await send({"type": "http.response.start", **start})
        said = None
        while not self._erasures.stopped:
            # taken before anything is awaited: no change is missed
            changed, event = self._erasures.changed, self._event()
            if event != said:
                said = event
                body = {"body": frame(event), "more_body": True}
                await send({"type": "http.response.body", **body})
            if event["state"] not in UNFINISHED:
                break
            await changed.wait()
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    def _event(self) -> dict[str, Any]:
        record = self._erasures.get(self._erasure)
        event: dict[str, Any] = {"id": record.id, "state": record.state}
        if (progress := self._erasures.progress(record.id)) and record.state in UNFINISHED:
            event |= {"stage": progress.stage, "done": progress.done, "total": progress.total}
        if record.reason:
            event["reason"] = record.reason
        return event
