"""An answer that is one JSON value: its texts are read, redacted, restored, or blocked."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from guard.errors import ContentBlocked
from server.screening.answers.blocked import block_answer, blocked_choices, choice_of
from server.screening.answers.upstream_errors import error_pieces, screen_error
from server.screening.bodies.images import PICTURES
from server.screening.bodies.texts import JsonText, JsonTexts
from server.screening.context import ScreeningContext
from server.screening.errors import UnreadableAnswer
from server.screening.findings import TextReader, blocks, redactions
from server.screening.images.reading import ImageReader, require_images, screen_images
from server.screening.request import RequestScreening
from server.screening.routes import Route
from server.screening.streams.event_queue import without_tokens
from server.screening.texts.joins import read_crossing, read_together
from server.screening.texts.rewriting import rewrite

_ROW = re.compile(r"(choices|output)\[(\d+)\]")


class AnswerOwner(TextReader, ImageReader, Protocol):
    """The exchange that an answer belongs to."""

    context: ScreeningContext
    route: Route
    screening: RequestScreening

    def refusal(self) -> ContentBlocked:
        """The error for an answer that cannot end as one that is blocked."""


async def screen_answer(value: Any, texts: JsonTexts, owner: AnswerOwner) -> tuple[Any, bool]:
    """The answer as it may leave, and whether that is another one. Raises ContentBlocked where the
    API has no answer that a filter has ended, and UnreadableAnswer for an image that cannot be
    read."""
    screening = owner.screening
    plan, placeholders = screening.plan, screening.placeholders
    if PICTURES in owner.route.generates:
        require_images(value, texts, screening.findings)
    unseen = await screen_images(texts, screening.findings, owner, in_response=True)
    errors, pieces = error_pieces(texts.pieces, value if owner.route.reports_errors else None)
    changed = await screen_error(
        errors, (), screening.findings, owner, placeholders, own_app=owner.context.own_app
    )
    if changed is None:
        raise UnreadableAnswer("The answer is an error with an image that must not be shown.")
    originals = [piece.text for piece in pieces]
    blocked = await _screen_texts(value, pieces, texts, owner) if plan.answering else []
    blocked += unseen
    if plan.settings.restore:
        for piece in pieces:
            rewrite(piece, (), placeholders, restore=True)
    texts.write_back()
    for piece, original in zip(pieces, originals, strict=True):
        if piece.text != original:
            changed = True
            without_tokens(_row_of(value, piece))
    if blocked:
        # last, since what is written into the texts would be written into what stands for them
        value = block_answer(owner.route.name, value, blocked, plan.message)
        if value is None:
            raise owner.refusal()
    return value, changed or bool(blocked)


async def _screen_texts(
    value: Any, pieces: Sequence[JsonText], texts: JsonTexts, owner: AnswerOwner
) -> list[JsonText]:
    """Screen and redact the texts; return those that must not leave."""
    screening = owner.screening
    findings, placeholders = screening.findings, screening.placeholders
    screens = screening.plan.answering
    patterns = [screen for screen in screens if screen.head is None]
    heads = [screen for screen in screens if screen.head is not None]
    blocked: list[JsonText] = []
    results = await owner.read([piece.reading for piece in pieces], patterns)
    for piece, piece_results in zip(pieces, results, strict=True):
        acting = findings.add(piece_results, piece.path, in_response=True)
        # the name of a member cannot be redacted
        if blocks(acting) or (piece.is_key and redactions(acting)):
            blocked.append(piece)
        else:
            rewrite(piece, acting, placeholders)
    ended = blocked_choices(value, blocked)
    if blocked and not ended:
        return blocked  # nothing of the answer leaves
    kept = set(map(id, pieces))
    units = [[piece for piece in unit if id(piece) in kept] for unit in texts.units()]
    said_together = _by_choice(units)
    # each choice is an answer of its own
    for choice, said in _by_choice([pieces]).items():
        if choice in ended:
            continue
        joined = await read_together(owner, said_together[choice], heads)
        joined += await read_crossing(owner, said[0], patterns)
        acting_on = [findings.add(found, first.path, in_response=True) for first, found in joined]
        # nor can a match across several strings
        blocked += said[0] if any(acting_on) else []
    return blocked


def _by_choice(units: Iterable[Sequence[JsonText]]) -> dict[int | None, list[list[JsonText]]]:
    """The texts of each unit by the choice that they are in; under None those outside of all."""
    choices: dict[int | None, list[list[JsonText]]] = {}
    for unit in units:
        parts: dict[int | None, list[JsonText]] = {}
        for piece in unit:
            parts.setdefault(choice_of(piece), []).append(piece)
        for choice, part in parts.items():
            choices.setdefault(choice, []).append(part)
    return choices


def _row_of(value: Any, piece: JsonText) -> Any:
    """The choice or the item that a text is in, or all of the answer."""
    match = _ROW.match(piece.path)
    rows = value.get(match[1]) if match and isinstance(value, dict) else None
    at = int(match[2]) if match else 0
    return rows[at] if isinstance(rows, list) and at < len(rows) else value
