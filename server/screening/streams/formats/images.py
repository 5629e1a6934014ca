"""Events of `/v1/images/...`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from server.screening.streams.formats.base import (
    Group,
    Slot,
    StreamFormat,
    framed,
    with_verdict,
)


class ImagesFormat(StreamFormat):
    """`/v1/images/...`: partial images, which have no new text."""

    def slots(self, event: dict[str, Any]) -> Sequence[Slot]:
        return ()

    def ended_groups(self, event: dict[str, Any]) -> Sequence[Group]:
        return ()

    def carries_verdict(self, event: dict[str, Any]) -> bool:
        return str(event.get("type")).endswith(".completed")

    def cut_events(self, group: Group, verdict: Mapping[str, Any] | None) -> Iterator[bytes]:
        return iter(())

    def closing_events(self, verdict: Mapping[str, Any] | None) -> Iterator[bytes]:
        error = {
            "message": self.options.message or "The content filter ended this answer.",
            "type": "invalid_request_error",
            "param": None,
            "code": "content_policy_violation",
        }
        yield framed(with_verdict({"error": error}, verdict))
