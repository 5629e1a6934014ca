"""instructor: objects through functions, through JSON, and through responses."""

from __future__ import annotations

from typing import Any

import instructor
import openai

from tests.conformance.drivers.python.loop import Call, Contact, run
from tests.conformance.drivers.python.openai_python import client_of
from tests.conformance.drivers.python.openai_python import details as details_of_openai

_MODES = {
    "chat": instructor.Mode.TOOLS,
    "chat-json": instructor.Mode.JSON_SCHEMA,
    "responses": instructor.Mode.RESPONSES_TOOLS,
}


def structured(call: Call) -> dict[str, Any]:
    client = instructor.from_openai(client_of(call), mode=_MODES[call.api])
    options: dict[str, Any] = {
        "model": call.model,
        "messages": [{"role": "user", "content": call.prompt}],
        "response_model": Contact,
        "max_retries": 0,
    }
    if call.stream:
        parts = list(client.create_partial(**options))
        return {"object": parts[-1].model_dump() if parts else None}
    return {"object": client.create(**options).model_dump()}


def details(error: BaseException) -> dict[str, Any]:
    """Those of OpenAI's exception inside its own."""
    seen: BaseException | None = error
    while seen is not None and not isinstance(seen, openai.APIError):
        seen = seen.__cause__ or seen.__context__
    return details_of_openai(seen or error)


if __name__ == "__main__":
    run({"object": structured}, details)
