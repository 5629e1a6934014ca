"""The texts of a streamed event that are whole: read, redacted and restored as those of an answer
that is not streamed."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any, Protocol

from server.screening.answers.upstream_errors import error_pieces, screen_error
from server.screening.bodies.texts import JsonText, JsonTexts, texts_of
from server.screening.findings import (
    Findings,
    ResponseScreens,
    ScreenedText,
    blocks,
    redactions,
)
from server.screening.images.reading import ImageReader, require_image, screen_images
from server.screening.streams.event_queue import without_tokens
from server.screening.streams.formats.base import Slot, is_error
from server.screening.texts.joins import read_crossing, read_together
from server.screening.texts.redaction import Placeholders
from server.screening.texts.rewriting import rewrite

_PADDING = "obfuscation"
"""What OpenAI adds to each event, so that its size does not tell its text: letters at random."""


class StreamScreens(ResponseScreens, ImageReader, Protocol):
    """Runs the screens on the events of a stream."""


class EventTexts:
    """Screens what adds to no channel, in the events of one stream.

    `reports_errors`: see `StreamFormat`.
    """

    def __init__(
        self,
        findings: Findings,
        screens: StreamScreens,
        placeholders: Placeholders,
        *,
        own_app: bool,
        reports_errors: bool,
    ) -> None:
        plan = findings.plan
        self._findings, self._screens, self._placeholders = findings, screens, placeholders
        self._own_app, self._reports_errors = own_app, reports_errors
        self._reads, self._restores = bool(plan.answering), plan.settings.restore
        self._heads = [screen for screen in plan.answering if screen.head is not None]
        self._lists = [screen for screen in plan.answering if screen.head is None]
        self._bare_events: deque[dict[str, Any]] = deque(maxlen=4)
        """Events without their new text, in which nothing else is to be read."""

    def of(self, event: dict[str, Any], slots: Sequence[Slot]) -> JsonTexts:
        """The texts of an event that are in no slot."""
        texts = [slot.text for slot in slots]
        for slot in slots:
            slot.holder[slot.key] = ""
        padding = event.get(_PADDING)
        pieces = []
        if slots and isinstance(padding, str) and padding:
            pieces = [JsonText(event, _PADDING, padding, "response", _PADDING, 0)]
            event[_PADDING] = ""
        try:
            # most events differ from the one before in their new text alone
            if event in self._bare_events:
                return JsonTexts(pieces)
            whole = texts_of(event, "response", skip_verdicts=self._own_app)
            if not (whole.pieces or whole.images) and slots:
                self._bare_events.append(copy.deepcopy(event))
            whole.pieces += pieces
            return whole
        finally:
            for slot, text in zip(slots, texts, strict=True):
                slot.holder[slot.key] = text
            if pieces:
                event[_PADDING] = padding

    async def screen(
        self, event: dict[str, Any], texts: JsonTexts, slots: Sequence[Slot]
    ) -> bool | None:
        """Screen the texts of an event; return whether one was rewritten, or None
        where one, or an image, must not leave. What an error must not say is withheld."""
        require_image(event, texts, self._findings)
        if await screen_images(texts, self._findings, self._screens, in_response=True):
            return None
        may_report = self._reports_errors and not slots
        errors, pieces = error_pieces(texts.pieces, event) if may_report else ((), texts.pieces)
        reports_error = may_report and is_error(event)
        rewritten: bool | None = False
        if errors or reports_error:
            rewritten = await screen_error(
                errors,
                pieces if reports_error else (),
                self._findings,
                self._screens,
                self._placeholders,
                own_app=self._own_app,
            )
            if rewritten is None:
                return None
            texts.pieces = pieces = [] if reports_error else list(pieces)
        results: Sequence[Sequence[ScreenedText]] = ()
        if self._reads and pieces:
            readings = [piece.reading for piece in pieces]
            results = await self._screens.read(readings, self._lists)
        for piece, piece_results in zip_longest(pieces, results, fillvalue=()):
            assert isinstance(piece, JsonText)
            acting = self._findings.add(piece_results, piece.path, in_response=True)
            if blocks(acting) or (piece.is_key and redactions(acting)):
                return None  # the name of a member cannot be redacted
            if rewrite(piece, acting, self._placeholders):
                rewritten = True
        if self._reads and pieces:
            joined = await read_together(self._screens, list(texts.units()), self._heads)
            joined += await read_crossing(self._screens, pieces, self._lists)
            for first, found in joined:
                if self._findings.add(found, first.path, in_response=True):
                    return None
        # what is restored is what the client wrote: not read again, nor together with others
        for piece in pieces if self._restores else ():
            if rewrite(piece, (), self._placeholders, restore=True):
                rewritten = True
        if rewritten:
            texts.write_back()
            without_tokens(event)
        return rewritten
