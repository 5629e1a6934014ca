"""Redaction and restoration of the texts of a body that is there as a whole."""

from __future__ import annotations

from collections.abc import Sequence

from server.screening.bodies.documents import Number
from server.screening.bodies.texts import JsonText
from server.screening.findings import ScreenedText, merge_spans, redactions
from server.screening.texts.redaction import Placeholders


def rewrite(
    piece: JsonText,
    acting: Sequence[ScreenedText],
    placeholders: Placeholders,
    *,
    restore: bool = False,
) -> bool:
    """Redact a text, and put originals back for placeholders; return whether it changed.

    A signed text is not restored, and taken away where something in it would be redacted: an
    altered one beside its signature is refused by whoever checks that.
    """
    spans = piece.spans(redactions(acting))
    if restore and piece.signed is None:
        if piece.kind == "value" and (number := placeholders.number(piece.text)):
            piece.write(Number(number))
            return True
        spans = merge_spans([*spans, *placeholders.find(piece.text)])
    if not spans or piece.is_key:
        return False
    piece.write(placeholders.redact(piece.text, spans, is_number=piece.kind == "number"))
    return True
