"""Redaction and restoration of the texts of a response that is there as a whole."""

from __future__ import annotations

from collections.abc import Sequence

from server.screening.findings import ScreenedText, merge_spans, redactions
from server.screening.texts.json_texts import JsonText
from server.screening.texts.redaction import Placeholders

_QUOTED = (".arguments", ".partial_json")
"""Ends of the paths of strings that are JSON themselves."""


def rewrite(
    piece: JsonText, acting: Sequence[ScreenedText], placeholders: Placeholders, *, restore: bool
) -> bool:
    """Redact a text, and put originals back for placeholders; return whether it changed."""
    spans = redactions(acting)
    if restore:
        spans = merge_spans([*spans, *placeholders.find(piece.text)])
    if not spans or piece.is_key:
        return False
    piece.write(placeholders.redact(piece.text, spans, quoted=piece.path.endswith(_QUOTED)))
    return True
