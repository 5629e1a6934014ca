"""Whether a request asks for an answer of a given form, of which a part is of no use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_FORMATS = ("response_format", "output_format")
_HOLDERS = {"text": "format", "output_config": "format"}
"""Of responses and messages: the members that have a format, and its name there."""
_OTHERS = (
    *("structured_outputs", "guided_json", "guided_regex", "guided_choice"),
    *("guided_grammar", "grammar", "json_schema"),
)
"""Of servers that are compatible with OpenAI's: vLLM, SGLang, llama.cpp."""


def asks_for_form(body: Mapping[str, Any]) -> bool:
    """By the fields of any API; a format of plain text is no form."""
    formats = [body.get(name) for name in _FORMATS]
    for holder, name in _HOLDERS.items():
        held = body.get(holder)
        formats.append(held.get(name) if isinstance(held, dict) else None)
    return any(isinstance(form, dict) and form.get("type") != "text" for form in formats) or any(
        body.get(name) is not None for name in _OTHERS
    )
