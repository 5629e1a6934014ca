"""litellm: chat completions, responses and messages."""

from __future__ import annotations

import json
import os
from typing import Any

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # it would fetch the list of prices

import litellm  # noqa: E402

from tests.conformance.drivers.python.loop import (  # noqa: E402
    MAIL_SCHEMA,
    Call,
    Contact,
    ErrorEvent,
    error_body,
    run,
    send_mail,
)

_MAIL = {"name": "send_mail", "description": "Send a mail.", "parameters": MAIL_SCHEMA}


def text(call: Call) -> dict[str, Any]:
    ask = [{"role": "user", "content": call.prompt}]
    return _response(call, ask)[0] if call.api == "responses" else _completion(call, ask)[0]


def tool(call: Call) -> dict[str, Any]:
    ask = [{"role": "user", "content": call.prompt}]
    if call.api == "responses":
        item = _function_call(_response(call, ask, tools=True)[1])
        return {"name": item.name, "arguments": json.loads(item.arguments)}
    function = _completion(call, ask, tools=True)[1].tool_calls[0].function
    return {"name": function.name, "arguments": json.loads(function.arguments)}


def loop(call: Call) -> dict[str, Any]:
    turns: list[Any] = [{"role": "user", "content": call.prompt}]
    if call.api == "responses":
        item = _function_call(_response(call, turns, tools=True)[1])
        result = send_mail(**json.loads(item.arguments))
        turns.append(
            {
                "type": "function_call",
                "call_id": item.call_id,
                "name": item.name,
                "arguments": item.arguments,
            }
        )
        turns.append({"type": "function_call_output", "call_id": item.call_id, "output": result})
        return _response(call, turns, tools=True)[0]
    message = _completion(call, turns, tools=True)[1]
    asked = message.tool_calls[0]
    result = send_mail(**json.loads(asked.function.arguments))
    turns.append(message.model_dump())
    turns.append({"role": "tool", "tool_call_id": asked.id, "content": result})
    return _completion(call, turns, tools=True)[0]


def structured(call: Call) -> dict[str, Any]:
    ask = [{"role": "user", "content": call.prompt}]
    if call.api == "responses":
        form = {"type": "json_schema", "name": "contact", "schema": Contact.model_json_schema()}
        told = _response(call, ask, text={"format": form})[0]
    else:
        told = _completion(call, ask, response_format=Contact)[0]
    return {"object": json.loads(told["text"])}


def embed(call: Call) -> dict[str, Any]:
    name = "openai/text-embedding-3-small"
    result = litellm.embedding(**{**_options(call), "model": name}, input=[call.prompt])
    return {"vector": result.data[0]["embedding"]}


def hang_up(call: Call) -> dict[str, Any]:
    if call.api == "responses":
        stream = litellm.responses(**_options(call), input=call.prompt, stream=True)
        for event in stream:
            if event.type == "response.output_text.delta":
                stream.response.close()
                return {"text": event.delta}
    ask = [{"role": "user", "content": call.prompt}]
    stream = litellm.completion(**_options(call), messages=ask, stream=True)
    first = next(piece for event in stream if (piece := event.choices[0].delta.content))
    stream.completion_stream.close()
    return {"text": first}


def details(error: BaseException) -> dict[str, Any]:
    told = {name: getattr(error, name, None) for name in ("status_code", "code", "type")}
    body = error_body(getattr(error, "body", None))
    return {name: value for name, value in {**told, **body}.items() if value is not None}


def _options(call: Call) -> dict[str, Any]:
    provider = "anthropic" if call.api == "messages" else "openai"
    retries: dict[str, Any] = {"max_retries": call.retries}
    if call.retries and call.api != "chat":
        # the client of OpenAI is not used there; the default does not wait between two tries
        retries = {"num_retries": call.retries, "retry_strategy": "exponential_backoff_retry"}
    return {
        "model": f"{provider}/{call.model}",
        "api_base": call.url if call.api == "messages" else f"{call.url}/v1",
        "api_key": call.key,
        "timeout": call.timeout,
        **retries,
    }


def _completion(
    call: Call, turns: list[Any], *, tools: bool = False, **options: Any
) -> tuple[dict[str, Any], Any]:
    options |= {**_options(call), "messages": turns}
    if tools:
        options["tools"] = [{"type": "function", "function": _MAIL}]
        if call.forced and len(turns) == 1:
            options["tool_choice"] = "required"
    if call.stream:
        options |= {"stream": True, "stream_options": {"include_usage": True}}
        result = litellm.stream_chunk_builder(list(litellm.completion(**options)))
    else:
        result = litellm.completion(**options)
    choice = result.choices[0]
    told = {
        "text": choice.message.content or "",
        "finish": choice.finish_reason,
        "tokens": result.usage.total_tokens,
    }
    return told, choice.message


def _response(
    call: Call, turns: list[Any], *, tools: bool = False, **options: Any
) -> tuple[dict[str, Any], Any]:
    options |= {**_options(call), "input": turns}
    if tools:
        options["tools"] = [{"type": "function", **_MAIL}]
        if call.forced and len(turns) == 1:
            options["tool_choice"] = "required"
    if call.stream:
        last = list(litellm.responses(**options, stream=True))[-1]
        response = last.response
        if response.error:
            raise ErrorEvent(str(response.error))
    else:
        response = litellm.responses(**options)
    incomplete = response.incomplete_details
    told = {
        "text": response.output_text,
        "finish": incomplete.reason if incomplete else response.status,
        "tokens": response.usage and response.usage.total_tokens,
    }
    return told, response


def _function_call(response: Any) -> Any:
    return next(item for item in response.output if item.type == "function_call")


if __name__ == "__main__":
    actions = {
        "text": text,
        "tool": tool,
        "loop": loop,
        "object": structured,
        "embed": embed,
        "hang_up": hang_up,
    }
    run(actions, details)
