"""Errors that an upstream reports: they reach the client with their status, type, code and message.

They are not texts that a model wrote, so no classifier reads them. They may quote personal data and
secrets, which patterns find: these are redacted, or their words are withheld.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from server.error_shapes import ANTHROPIC, ErrorFields
from server.observe.exchange import Exchange
from server.screening.bodies.texts import JsonText
from server.screening.errors import UpstreamError
from server.screening.findings import Findings, ScreenedText, TextReader, blocks, redactions
from server.screening.streams.formats.base import fields_of
from server.screening.texts.redaction import Placeholders
from server.screening.texts.rewriting import rewrite

WITHHELD = "The upstream's words are not shown."
_MEMBERS = ("message", "code", "param", "type")
"""Members of an error event of `/v1/responses`, which has them at its top."""
_ANSWERS = ("choices", "output", "content", "candidates")
"""Members that no error has; what they hold is read like an answer."""


def is_of_error(piece: JsonText, body: Mapping[str, Any]) -> bool:
    """Whether a text of an answer or an event belongs to an error in it: of one that has nothing
    else to say, or of a response that has failed."""
    first, _, rest = piece.path.partition(".")
    if first == "response":
        return rest.partition(".")[0] == "error" and body.get("type") == "response.failed"
    if body.get("status") != "failed" and any(body.get(name) for name in _ANSWERS):
        return False
    return first == "error" or (body.get("type") == "error" and first in _MEMBERS)


def is_of_answer(piece: JsonText) -> bool:
    """Whether a text in the body of an error is nevertheless read like an answer."""
    return piece.path.partition(".")[0].partition("[")[0] in _ANSWERS


def error_pieces(
    pieces: Sequence[JsonText], body: Any
) -> tuple[Sequence[JsonText], Sequence[JsonText]]:
    """The texts of an answer or an event that belong to an error in it, and the others."""
    if not isinstance(body, dict) or not pieces:
        return (), pieces
    errors = [piece for piece in pieces if is_of_error(piece, body)]
    others = [piece for piece in pieces if not is_of_error(piece, body)] if errors else pieces
    return errors, others


async def screen_error(
    errors: Sequence[JsonText],
    others: Sequence[JsonText],
    findings: Findings,
    reader: TextReader,
    placeholders: Placeholders,
    *,
    own_app: bool,
) -> bool | None:
    """Redact the texts of an error, restore the request's own in it, and withhold those that a
    screen blocks; return whether one has changed, or None where the whole error must not leave: it
    has an image with a text that would change. Texts in JSON are not written back yet.

    Patterns read `errors`, all screens `others`; nothing is read that this server says itself.
    """
    plan = findings.plan
    patterns = [screen for screen in plan.answering if screen.head is None]
    changed = must_stay = False
    for pieces, screens in ((errors, patterns), (others, plan.answering)):
        results: Sequence[Sequence[ScreenedText]] = [()] * len(pieces)
        if pieces and screens and not own_app:
            results = await reader.read([piece.reading for piece in pieces], screens)
        for piece, piece_results in zip(pieces, results, strict=True):
            acting = findings.add(piece_results, piece.path, in_response=True)
            if piece.holder is None:
                must_stay |= bool(blocks(acting) or redactions(acting))
            elif piece.is_key and (blocks(acting) or redactions(acting)):
                del piece.holder[piece.key]
                changed = True
            elif blocks(acting):
                piece.write(WITHHELD)
                changed = True
            elif rewrite(piece, acting, placeholders, restore=plan.settings.restore):
                changed = True
    return None if must_stay else changed


def shaped_error(value: Any, status: int, exchange: Exchange) -> dict[str, Any]:
    """The body of an error as the API that was called has it; `value` is what the upstream sent,
    None where that is not JSON."""
    if isinstance(value, list) and value:
        value = value[0]
    if not isinstance(value, dict):
        plain = UpstreamError(status)
        fields = ErrorFields.of_status(status, plain.message, plain.code)
        return exchange.error_shape.body(fields, exchange.request_id)
    error = value.get("error")
    if exchange.error_shape is not ANTHROPIC or (
        value.get("type") == "error" and isinstance(error, dict) and "message" in error
    ):
        return value
    known = fields_of(value)
    fields = ErrorFields(status, known.message, known.type, known.code, known.param)
    return ANTHROPIC.body(fields, exchange.request_id)
