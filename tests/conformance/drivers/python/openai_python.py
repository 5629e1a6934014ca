"""openai-python: chat completions and responses."""

from __future__ import annotations

import json
from typing import Any

import openai

from tests.conformance.drivers.python.loop import (
    MAIL_SCHEMA,
    Call,
    Contact,
    ErrorEvent,
    run,
    send_mail,
)

_MAIL = {"name": "send_mail", "description": "Send a mail.", "parameters": MAIL_SCHEMA}


def client_of(call: Call) -> openai.OpenAI:
    return openai.OpenAI(
        base_url=f"{call.url}/v1", api_key=call.key, max_retries=call.retries, timeout=call.timeout
    )


def text(call: Call) -> dict[str, Any]:
    client = client_of(call)
    if call.api == "responses":
        return _response(client, call, [{"role": "user", "content": call.prompt}])[0]
    return _completion(client, call, [{"role": "user", "content": call.prompt}])[0]


def tool(call: Call) -> dict[str, Any]:
    client, ask = client_of(call), [{"role": "user", "content": call.prompt}]
    if call.api == "responses":
        item = _function_call(_response(client, call, ask, tools=True)[1])
        return {"name": item.name, "arguments": json.loads(item.arguments)}
    function = _completion(client, call, ask, tools=True)[1].tool_calls[0].function
    return {"name": function.name, "arguments": json.loads(function.arguments)}


def loop(call: Call) -> dict[str, Any]:
    client = client_of(call)
    turns: list[Any] = [{"role": "user", "content": call.prompt}]
    if call.api == "responses":
        response = _response(client, call, turns, tools=True)[1]
        item = _function_call(response)
        result = send_mail(**json.loads(item.arguments))
        turns += response.output
        turns.append({"type": "function_call_output", "call_id": item.call_id, "output": result})
        return _response(client, call, turns, tools=True)[0]
    message = _completion(client, call, turns, tools=True)[1]
    asked = message.tool_calls[0]
    result = send_mail(**json.loads(asked.function.arguments))
    turns.append(message.model_dump(include={"role", "content", "tool_calls"}))
    turns.append({"role": "tool", "tool_call_id": asked.id, "content": result})
    return _completion(client, call, turns, tools=True)[0]


def structured(call: Call) -> dict[str, Any]:
    client, ask = client_of(call), [{"role": "user", "content": call.prompt}]
    options: dict[str, Any] = {"model": call.model}
    if call.api == "responses":
        options |= {"input": ask, "text_format": Contact}
        if call.stream:
            with client.responses.stream(**options) as stream:
                response = stream.until_done().get_final_response()
        else:
            response = client.responses.parse(**options)
        return {"object": response.output_parsed.model_dump()}
    options |= {"messages": ask, "response_format": Contact}
    if call.stream:
        with client.chat.completions.stream(**options) as stream:
            completion = stream.until_done().get_final_completion()
    else:
        completion = client.chat.completions.parse(**options)
    return {"object": completion.choices[0].message.parsed.model_dump()}


def embed(call: Call) -> dict[str, Any]:
    result = client_of(call).embeddings.create(model="text-embedding-3-small", input=[call.prompt])
    return {"vector": result.data[0].embedding}


def image(call: Call) -> dict[str, Any]:
    result = client_of(call).images.generate(
        model="gpt-image-1", prompt=call.prompt, output_format="png"
    )
    return {"image": result.data[0].b64_json}


def models(call: Call) -> dict[str, Any]:
    return {"names": [model.id for model in client_of(call).models.list()]}


def hang_up(call: Call) -> dict[str, Any]:
    client = client_of(call)
    if call.api == "responses":
        stream = client.responses.create(model=call.model, input=call.prompt, stream=True)
        first = next(event.delta for event in stream if event.type == "response.output_text.delta")
    else:
        ask = [{"role": "user", "content": call.prompt}]
        stream = client.chat.completions.create(model=call.model, messages=ask, stream=True)
        first = next(text for event in stream if (text := event.choices[0].delta.content))
    stream.close()
    return {"text": first}


def details(error: BaseException) -> dict[str, Any]:
    told = {
        name: getattr(error, name)
        for name in ("status_code", "type", "code")
        if hasattr(error, name)
    }
    if isinstance(error, openai.APIStatusError):
        told["retry_after"] = error.response.headers.get("retry-after")
    return told


def _completion(
    client: openai.OpenAI, call: Call, turns: list[Any], *, tools: bool = False
) -> tuple[dict[str, Any], Any]:
    options: dict[str, Any] = {"model": call.model, "messages": turns}
    if tools:
        options["tools"] = [{"type": "function", "function": _MAIL}]
        if call.forced and len(turns) == 1:
            options["tool_choice"] = "required"
    if call.stream:
        options["stream_options"] = {"include_usage": True}
        # the helper for streams takes a blocked answer as an exception; its events are read before
        with client.chat.completions.stream(**options) as stream:
            for _ in stream:
                pass
            completion = stream.current_completion_snapshot
    else:
        completion = client.chat.completions.create(**options)
    choice, usage = completion.choices[0], completion.usage
    result = {
        "text": choice.message.content or "",
        "finish": choice.finish_reason,
        "tokens": usage and usage.total_tokens,
    }
    return result, choice.message


def _response(
    client: openai.OpenAI, call: Call, turns: list[Any], *, tools: bool = False
) -> tuple[dict[str, Any], Any]:
    options: dict[str, Any] = {"model": call.model, "input": turns}
    if tools:
        options["tools"] = [{"type": "function", "strict": True, **_MAIL}]
        if call.forced and len(turns) == 1:
            options["tool_choice"] = "required"
    if call.stream:
        events = list(client.responses.create(stream=True, **options))
        told = "".join(
            event.delta for event in events if event.type == "response.output_text.delta"
        )
        response = events[-1].response
        if response.error:
            raise ErrorEvent(response.error.message)
        assert told in ("", response.output_text), (told, response.output_text)
    else:
        response = client.responses.create(**options)
    incomplete = response.incomplete_details
    result = {
        "text": response.output_text,
        "finish": incomplete.reason if incomplete else response.status,
        "tokens": response.usage and response.usage.total_tokens,
    }
    return result, response


def _function_call(response: Any) -> Any:
    return next(item for item in response.output if item.type == "function_call")


if __name__ == "__main__":
    actions = {
        "text": text,
        "tool": tool,
        "loop": loop,
        "object": structured,
        "embed": embed,
        "image": image,
        "models": models,
        "hang_up": hang_up,
    }
    run(actions, details)
