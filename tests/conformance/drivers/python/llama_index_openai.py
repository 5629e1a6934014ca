"""llama-index-llms-openai: chat completions and responses."""

from __future__ import annotations

import gc
import json
from typing import Any

from llama_index.core.llms import ChatMessage
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai import OpenAI, OpenAIResponses

from tests.conformance.drivers.python.loop import Call, Contact, run, send_mail
from tests.conformance.drivers.python.openai_python import details

_MAIL = FunctionTool.from_defaults(send_mail)


def model_of(call: Call) -> Any:
    kind = OpenAIResponses if call.api == "responses" else OpenAI
    return kind(
        model=call.model,
        api_base=f"{call.url}/v1",
        api_key=call.key,
        max_retries=call.retries,
        timeout=call.timeout,
        reuse_client=False,
    )


def text(call: Call) -> dict[str, Any]:
    model, ask = model_of(call), [ChatMessage(role="user", content=call.prompt)]
    if not call.stream:
        answer = model.chat(ask)
        return {"text": answer.message.content or "", **_end(answer)}
    answers = list(model.stream_chat(ask))
    ends = [end for answer in answers if (end := _end(answer))]
    told = ends[-1] if ends else {}
    return {"text": "".join(answer.delta or "" for answer in answers), **told}


def tool(call: Call) -> dict[str, Any]:
    model = model_of(call)
    asked = model.get_tool_calls_from_response(_answer(model, call, call.prompt, []))[0]
    return {"name": asked.tool_name, "arguments": asked.tool_kwargs}


def loop(call: Call) -> dict[str, Any]:
    model, turns = model_of(call), [ChatMessage(role="user", content=call.prompt)]
    answer = _answer(model, call, None, turns)
    asked = model.get_tool_calls_from_response(answer)[0]
    result = send_mail(**asked.tool_kwargs)
    turns.append(answer.message)
    turns.append(
        ChatMessage(
            role="tool",
            content=result,
            additional_kwargs={"tool_call_id": asked.tool_id, "call_id": asked.tool_id},
        )
    )
    return {"text": _answer(model, call, None, turns).message.content or ""}


def structured(call: Call) -> dict[str, Any]:
    model, template = model_of(call), PromptTemplate("{question}")
    if call.stream:
        parts = list(model.stream_structured_predict(Contact, template, question=call.prompt))
        last = parts[-1]
        return {"object": json.loads(last.model_dump_json())}
    return {
        "object": model.structured_predict(Contact, template, question=call.prompt).model_dump()
    }


def hang_up(call: Call) -> dict[str, Any]:
    stream = model_of(call).stream_chat([ChatMessage(role="user", content=call.prompt)])
    first = next(answer.delta for answer in stream if answer.delta)
    stream.close()
    del stream
    gc.collect()  # it has no way to close its connection
    return {"text": first}


def _answer(model: Any, call: Call, prompt: str | None, turns: list[ChatMessage]) -> Any:
    options: dict[str, Any] = {"user_msg": prompt, "chat_history": turns}
    options["tool_required"] = call.forced and len(turns) <= 1
    if call.stream:
        return list(model.stream_chat_with_tools([_MAIL], **options))[-1]
    return model.chat_with_tools([_MAIL], **options)


def _end(answer: Any) -> dict[str, Any]:
    """The finish that a raw answer or event tells; empty where it tells none."""
    raw = answer.raw
    if choices := getattr(raw, "choices", None):
        return {"finish": choices[0].finish_reason} if choices[0].finish_reason else {}
    response = getattr(raw, "response", raw)
    incomplete = getattr(response, "incomplete_details", None)
    status = getattr(response, "status", None)
    return {"finish": incomplete.reason if incomplete else status} if status else {}


if __name__ == "__main__":
    actions = {
        "text": text,
        "tool": tool,
        "loop": loop,
        "object": structured,
        "hang_up": hang_up,
    }
    run(actions, details)
