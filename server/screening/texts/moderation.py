"""`/v1/moderations`, in OpenAI's schema: what every loaded screen says of a text."""

from __future__ import annotations

import uuid
from typing import Any

from guard.plans.screens import TextScreen
from server.errors import InvalidParameter, MissingParameter
from server.screening.errors import UnscreenedContent
from server.screening.findings import ScreenedText
from server.screening.texts.screener import Screener

MODEL = "inference-guard"
MOST_TEXTS = 128


async def moderate(
    body: dict[str, Any], screens: list[TextScreen], screener: Screener
) -> dict[str, Any]:
    """The answer to a request: a result for each text of `input`; categories are the screens.

    Raises MissingParameter, InvalidParameter, UnscreenedContent and what the screens do.
    """
    texts = _texts(body)
    read = await screener.read(texts, screens)
    return {
        "id": f"modr-{uuid.uuid4().hex}",
        "model": MODEL,
        "results": [_result(seen) for seen in read],
    }


def _result(seen: list[ScreenedText]) -> dict[str, Any]:
    fired = {each.screen.name: each.fired for each in seen}
    return {
        "flagged": any(fired.values()),
        "categories": fired,
        "category_scores": {each.screen.name: round(each.score, 6) for each in seen},
        "category_applied_input_types": {name: ["text"] for name in fired},
    }


def _texts(body: dict[str, Any]) -> list[str]:
    given = body.get("input")
    if given is None:
        raise MissingParameter("Missing required parameter: 'input'.", param="input")
    if isinstance(given, str):
        return [given]
    if isinstance(given, list) and 0 < len(given) <= MOST_TEXTS:
        if all(isinstance(each, str) for each in given):
            return list(given)
        if all(isinstance(each, dict) for each in given):
            # parts of one input, as OpenAI takes them
            return ["\n".join(_part(each) for each in given)]
    raise InvalidParameter(
        f"'input' is a text, or a list of at most {MOST_TEXTS} texts or parts.", param="input"
    )


def _part(part: dict[str, Any]) -> str:
    if part.get("type") == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    raise UnscreenedContent("Only parts of type 'text' can be moderated here.", param="input")
