"""anthropic: messages."""

from __future__ import annotations

from typing import Any

import anthropic

from tests.conformance.drivers.python.loop import (
    MAIL_SCHEMA,
    Call,
    Contact,
    error_body,
    run,
    send_mail,
)

MOST_TOKENS = 16_000
"""The API needs a number; the server has a limit of its own."""
_MAIL = {"name": "send_mail", "description": "Send a mail.", "input_schema": MAIL_SCHEMA}


def client_of(call: Call) -> anthropic.Anthropic:
    return anthropic.Anthropic(
        base_url=call.url, api_key=call.key, max_retries=call.retries, timeout=call.timeout
    )


def text(call: Call) -> dict[str, Any]:
    return _told(_message(call, [{"role": "user", "content": call.prompt}]))


def tool(call: Call) -> dict[str, Any]:
    message = _message(call, [{"role": "user", "content": call.prompt}], tools=[_MAIL])
    block = next(block for block in message.content if block.type == "tool_use")
    return {"name": block.name, "arguments": block.input}


def loop(call: Call) -> dict[str, Any]:
    turns: list[Any] = [{"role": "user", "content": call.prompt}]
    message = _message(call, turns, tools=[_MAIL])
    block = next(block for block in message.content if block.type == "tool_use")
    result = {"type": "tool_result", "tool_use_id": block.id, "content": send_mail(**block.input)}
    turns.append({"role": "assistant", "content": message.content})
    turns.append({"role": "user", "content": [result]})
    return _told(_message(call, turns, tools=[_MAIL]))


def structured(call: Call) -> dict[str, Any]:
    options: dict[str, Any] = {
        "model": call.model,
        "max_tokens": MOST_TOKENS,
        "messages": [{"role": "user", "content": call.prompt}],
        "output_format": Contact,
    }
    if call.stream:
        with client_of(call).messages.stream(**options) as stream:
            message = stream.get_final_message()
    else:
        message = client_of(call).messages.parse(**options)
    return {"object": message.parsed_output.model_dump()}


def models(call: Call) -> dict[str, Any]:
    return {"names": [model.id for model in client_of(call).models.list()]}


def hang_up(call: Call) -> dict[str, Any]:
    stream = client_of(call).messages.create(
        model=call.model,
        max_tokens=MOST_TOKENS,
        messages=[{"role": "user", "content": call.prompt}],
        stream=True,
    )
    first = next(event for event in stream if event.type == "content_block_delta")
    stream.close()
    return {"text": first.delta.text}


def details(error: BaseException) -> dict[str, Any]:
    if not isinstance(error, anthropic.APIError):
        return {}
    told = {"type": error_body(error.body).get("type")}
    if isinstance(error, anthropic.APIStatusError):
        told["status_code"] = error.status_code
        told["retry_after"] = error.response.headers.get("retry-after")
    return told


def _message(call: Call, turns: list[Any], **options: Any) -> Any:
    options |= {"model": call.model, "max_tokens": MOST_TOKENS, "messages": turns}
    if call.forced and "tools" in options and len(turns) == 1:
        options["tool_choice"] = {"type": "any"}
    if call.stream:
        with client_of(call).messages.stream(**options) as stream:
            return stream.get_final_message()
    return client_of(call).messages.create(**options)


def _told(message: Any) -> dict[str, Any]:
    return {
        "text": "".join(block.text for block in message.content if block.type == "text"),
        "finish": message.stop_reason,
        "tokens": message.usage.input_tokens + message.usage.output_tokens,
    }


if __name__ == "__main__":
    actions = {
        "text": text,
        "tool": tool,
        "loop": loop,
        "object": structured,
        "models": models,
        "hang_up": hang_up,
    }
    run(actions, details)
