"""langchain-openai: chat completions and responses."""

from __future__ import annotations

from functools import reduce
from operator import add
from typing import Any

from langchain_core.messages import HumanMessage
from langchain_core.tools import tool as as_tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings

from tests.conformance.drivers.python.loop import Call, Contact, run, send_mail
from tests.conformance.drivers.python.openai_python import details

_MAIL = as_tool(send_mail)


def model_of(call: Call) -> ChatOpenAI:
    return ChatOpenAI(
        model=call.model,
        base_url=f"{call.url}/v1",
        api_key=call.key,
        max_retries=call.retries,
        timeout=call.timeout,
        stream_usage=True,
        use_responses_api=call.api == "responses",
    )


def text(call: Call) -> dict[str, Any]:
    return _told(_message(model_of(call), call, [HumanMessage(call.prompt)]))


def tool(call: Call) -> dict[str, Any]:
    message = _message(_mailing(call), call, [HumanMessage(call.prompt)])
    return {"name": message.tool_calls[0]["name"], "arguments": message.tool_calls[0]["args"]}


def loop(call: Call) -> dict[str, Any]:
    model, turns = model_of(call).bind_tools([_MAIL]), [HumanMessage(call.prompt)]
    turns.append(_message(_mailing(call), call, turns))
    turns.append(_MAIL.invoke(turns[-1].tool_calls[0]))
    return _told(_message(model, call, turns))


def structured(call: Call) -> dict[str, Any]:
    model = model_of(call).with_structured_output(Contact)
    if call.stream:
        return {"object": list(model.stream(call.prompt))[-1].model_dump()}
    return {"object": model.invoke(call.prompt).model_dump()}


def embed(call: Call) -> dict[str, Any]:
    # by default it sends numbers of tokens, which no screen can read
    model = OpenAIEmbeddings(
        base_url=f"{call.url}/v1",
        api_key=call.key,
        max_retries=call.retries,
        check_embedding_ctx_length=False,
    )
    return {"vector": model.embed_query(call.prompt)}


def hang_up(call: Call) -> dict[str, Any]:
    stream = model_of(call).stream(call.prompt)
    first = next(chunk.text for chunk in stream if chunk.text)
    stream.close()
    return {"text": first}


def _mailing(call: Call) -> Any:
    return model_of(call).bind_tools([_MAIL], **({"tool_choice": "any"} if call.forced else {}))


def _message(model: Any, call: Call, turns: list[Any]) -> Any:
    return reduce(add, model.stream(turns)) if call.stream else model.invoke(turns)


def _told(message: Any) -> dict[str, Any]:
    told = message.response_metadata
    finish = told.get("finish_reason") or (told.get("incomplete_details") or {}).get("reason")
    return {
        "text": message.text,
        "finish": finish or told.get("status"),
        "tokens": message.usage_metadata and message.usage_metadata["total_tokens"],
    }


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
