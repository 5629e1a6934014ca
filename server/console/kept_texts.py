"""What a request said, where its policy keeps it, and who has read it."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import Any

from guard.audit import AuditLog
from guard.errors import GuardError, RequestError
from server.observe.traffic import Finished
from server.screening.bodies.texts import texts_of
from server.screening.errors import TooManyTexts
from server.screening.kept import KeptBody, KeptTexts
from server.wire.strict_json import NestedTooDeeply

EVENT = "texts"


class TextNotKept(RequestError):
    """No text of a request is kept, or not any more."""

    status = 404
    code = "text_not_kept"


class AuditUnavailable(GuardError):
    """The audit log takes no line, and without one the act is not done."""

    status = 503
    code = "audit_unavailable"


@dataclass(frozen=True, slots=True)
class TrafficTexts:
    """The texts of the last requests that are in `kept`; each reading is a line of `audit`, where
    there is a log."""

    kept: KeptTexts
    audit: AuditLog | None

    def has(self, finished: Finished) -> bool:
        """Whether the text of a request is kept now."""
        return self._body(finished) is not None

    async def read(self, finished: Finished, by: str) -> dict[str, Any]:
        """The JSON-ready texts of a request, for the principal `by`. Raises TextNotKept, and
        AuditUnavailable: nobody reads unseen."""
        if (body := self._body(finished)) is None:
            raise TextNotKept("The text of this request is not kept, or not any more.")
        answer = await asyncio.to_thread(_told, body)
        await asyncio.to_thread(self._note, finished, by)
        return {"object": "traffic.text", "id": finished.number, **answer}

    def _body(self, finished: Finished) -> KeptBody | None:
        verdict = finished.verdict
        return self.kept.get(finished.tenant, verdict.request_id, verdict.policy)

    def _note(self, finished: Finished, by: str) -> None:
        if self.audit is None:
            return
        verdict = finished.verdict
        facts = {"request_id": verdict.request_id, "policy": verdict.policy}
        try:
            self.audit.append_event(EVENT, act="read", tenant=finished.tenant, **facts, by=by)
        except OSError as error:
            raise AuditUnavailable(
                "The audit log takes no line, so the text is not shown: its disk may be full."
            ) from error


def _told(body: KeptBody) -> dict[str, Any]:
    try:
        found = texts_of(json.loads(body.raw), body.default_place, skip_verdicts=True)
    except (NestedTooDeeply, TooManyTexts) as error:
        raise TextNotKept(f"The text of this request cannot be read: {error}") from error
    texts = [
        {"place": piece.place, "path": _valid(piece.path), "text": _valid(piece.text)}
        for piece in found.pieces
        if piece.kind != "label" and piece.path != "model"
    ]
    return {"texts": texts, "not_text": sorted(found.opaque)}


def _valid(text: str) -> str:
    """Half a surrogate pair, which JSON in a string may have and UTF-8 lacks, becomes a "?"."""
    return text.encode("utf-8", "replace").decode()
