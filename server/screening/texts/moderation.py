"""`/v1/moderations` in OpenAI's schema: the scores of every loaded screen on a text."""

from __future__ import annotations

import uuid
from typing import Any

from guard.plans.screens import TextScreen
from server.errors import InvalidParameter, MissingParameter
from server.screening.errors import UnscreenedContent
from server.screening.findings import ScreenedText
from server.screening.texts.screener import Screener

MODEL = "inference-guard"
MAX_TEXTS = 128


async def moderate(
    body: dict[str, Any], screens: list[TextScreen], screener: Screener
) -> dict[str, Any]:
    """The response to a request: a result per text of `input`; the categories are the screens.

    Raises MissingParameter, InvalidParameter, UnscreenedContent and what `Screener.read` does.
    """
    results = await screener.read(_texts(body), screens)
    return {
        "id": f"modr-{uuid.uuid4().hex}",
        "model": MODEL,
        "results": [_result(text_results) for text_results in results],
    }


def _result(results: list[ScreenedText]) -> dict[str, Any]:
    fired = {result.screen.name: result.fired for result in results}
    return {
        "flagged": any(fired.values()),
        "categories": fired,
        "category_scores": {r.screen.name: round(r.score, 6) for r in results},
        "category_applied_input_types": {name: ["text"] for name in fired},
    }


def _texts(body: dict[str, Any]) -> list[str]:
    value = body.get("input")
    if value is None:
        raise MissingParameter("Missing required parameter: 'input'.", param="input")
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and 0 < len(value) <= MAX_TEXTS:
        if all(isinstance(item, str) for item in value):
            return list(value)
        if all(isinstance(item, dict) for item in value):
            # parts of one input, as OpenAI takes them
            return ["\n".join(_part_text(part) for part in value)]
    raise InvalidParameter(
        f"'input' is a text, or a list of at most {MAX_TEXTS} texts or parts.", param="input"
    )


def _part_text(part: dict[str, Any]) -> str:
    if part.get("type") == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    raise UnscreenedContent("Only parts of type 'text' can be moderated here.", param="input")
