"""`/v1/moderations` in OpenAI's schema: the scores of every screen on a text that a key may use."""

from __future__ import annotations

import uuid
from typing import Any

from guard.config.schema import Config, KeyConfig
from guard.errors import PolicyForbidden
from guard.plans.screens import TextPlans, TextScreen
from server.auth import allowed_policies
from server.errors import InvalidParameter, MissingParameter
from server.screening.errors import UnscreenedContent
from server.screening.findings import ScreenedText
from server.screening.texts.screener import Screener
from server.screening.texts.turns import Caller
from server.wire.schemas.moderations import MAX_TEXTS

MODEL = "inference-guard"


def screens_for(config: Config, plans: TextPlans, key: KeyConfig | None) -> list[TextScreen]:
    """The screens of the policies that a request with `key` may ask for; all on an open server.

    Raises PolicyForbidden where there is none.
    """
    if key is None:
        return list(plans.screens)
    models = [None, *(model.name for model in config.models)]
    policies = {name for model in models for name in allowed_policies(config, key, model)}
    names = {screen.name for policy in policies for screen in plans[policy].screens}
    screens = [screen for screen in plans.screens if screen.name in names]
    if not screens:
        raise PolicyForbidden(
            "No policy of this API key screens text: have the operator add one to its 'policies'."
        )
    return screens


async def moderate(
    body: dict[str, Any], screens: list[TextScreen], screener: Screener, caller: Caller
) -> dict[str, Any]:
    """The response to a request: a result per text of `input`; the categories are the screens.

    Raises MissingParameter, InvalidParameter, UnscreenedContent and what `Screener.read` does.
    """
    results = await screener.read(_texts(body), screens, caller=caller)
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
