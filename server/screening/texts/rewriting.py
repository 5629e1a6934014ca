"""Texts of an answer that is there as a whole, with what was found in them cut out or put back."""

from __future__ import annotations

from collections.abc import Sequence

from server.screening.findings import ScreenedText, apart, redactions
from server.screening.texts.json_texts import JsonText
from server.screening.texts.redaction import Placeholders

_QUOTED = (".arguments", ".partial_json")
"""Ends of the paths of strings that are JSON themselves."""


def write_over(
    piece: JsonText, acting: Sequence[ScreenedText], placeholders: Placeholders, *, restoring: bool
) -> bool:
    """Write what leaves into a piece's place; whether that is another text."""
    spans = redactions(acting)
    if restoring:
        spans = apart([*spans, *placeholders.find(piece.text)])
    if not spans or piece.is_key:
        return False
    piece.write(placeholders.redacted(piece.text, spans, quoted=piece.path.endswith(_QUOTED)))
    return True
