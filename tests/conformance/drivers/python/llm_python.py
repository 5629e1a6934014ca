"""llm: chat completions and responses. It tries again by itself, and has no setting for that."""

from __future__ import annotations

import gc
import json
from typing import Any

import llm
from llm.default_plugins.openai_models import Chat, Responses

from tests.conformance.drivers.python.loop import Call, Contact, Missing, run, send_mail
from tests.conformance.drivers.python.openai_python import details


def model_of(call: Call) -> Any:
    kind = Responses if call.api == "responses" else Chat
    options = {"supports_schema": True, "supports_tools": True}
    return kind(call.model, key=call.key, api_base=f"{call.url}/v1", **options)


def text(call: Call) -> dict[str, Any]:
    if call.timeout < 5:
        raise Missing("no setting for the time that it waits")
    return _told(model_of(call).prompt(call.prompt, stream=call.stream))


def tool(call: Call) -> dict[str, Any]:
    _require_choice(call)
    response = model_of(call).prompt(call.prompt, stream=call.stream, tools=[send_mail])
    asked = response.tool_calls()[0]
    return {"name": asked.name, "arguments": asked.arguments}


def loop(call: Call) -> dict[str, Any]:
    _require_choice(call)
    chain = model_of(call).chain(call.prompt, stream=call.stream, tools=[send_mail])
    return _told(list(chain.responses())[-1])


def structured(call: Call) -> dict[str, Any]:
    response = model_of(call).prompt(call.prompt, stream=call.stream, schema=Contact)
    return {"object": json.loads(response.text())}


def hang_up(call: Call) -> dict[str, Any]:
    pieces = iter(model_of(call).prompt(call.prompt, stream=True))
    first = next(pieces)
    pieces.close()
    del pieces
    gc.collect()  # it has no way to close its connection
    return {"text": first}


def _require_choice(call: Call) -> None:
    if call.forced:
        raise Missing("it leaves the choice of tools to the model")


def _told(response: llm.Response) -> dict[str, Any]:
    told, raw = {"text": response.text()}, response.response_json or {}
    if "finish_reason" in raw:
        told["finish"] = raw["finish_reason"]
    elif raw.get("choices"):
        told["finish"] = raw["choices"][0]["finish_reason"]
    elif "status" in raw:
        told["finish"] = (raw.get("incomplete_details") or {}).get("reason") or raw["status"]
    usage = response.usage()
    if usage and usage.input is not None:
        told["tokens"] = usage.input + usage.output
    return told


if __name__ == "__main__":
    actions = {
        "text": text,
        "tool": tool,
        "loop": loop,
        "object": structured,
        "hang_up": hang_up,
    }
    run(actions, details)
