"""`{"name": ..., "arguments": {...}}` alone, in a list, or in a fence: models of no other family.

With `tool_parser = "json"` a model whose chat template knows no tools is told of them in its system
prompt; what it has called, and what came of it, is text of the conversation then.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from server.services.tools.family import BARE, FENCES, ToolFamily

GENERIC = ToolFamily("json", (*FENCES, BARE))

_PROMPT = """\
You can call tools. These are their names, what they do, and the JSON schemas of their arguments:
{tools}
To call one, answer with a JSON object and nothing else:
{{"name": "NAME", "arguments": {{...}}}}"""


def with_tools_as_text(
    messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """`messages` in the form of OpenAI's chats without members that only templates with tools know.

    Results that follow each other are one message of the user, since templates want turns.
    """
    written: list[dict[str, Any]] = []
    for message in messages:
        if message["role"] == "tool":
            text = f"Result of {message.get('name') or 'the tool'}: {message['content']}"
            if written and written[-1].get("results"):
                written[-1]["content"] += f"\n{text}"
            else:
                written.append({"role": "user", "content": text, "results": True})
        else:
            written.append(_without_calls(message))
    plain = [
        {key: item for key, item in message.items() if key != "results"} for message in written
    ]
    return _told(plain, tools) if tools else plain


def _told(
    messages: list[dict[str, Any]], tools: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    listed = "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in tools)
    prompt = _PROMPT.format(tools=listed)
    if messages and messages[0]["role"] == "system":
        first, *others = messages
        return [{**first, "content": f"{first['content']}\n\n{prompt}"}, *others]
    return [{"role": "system", "content": prompt}, *messages]


def _without_calls(message: Mapping[str, Any]) -> dict[str, Any]:
    calls = message.get("tool_calls") or ()
    written = {key: item for key, item in message.items() if key != "tool_calls"}
    if calls:
        objects = (json.dumps(call["function"], ensure_ascii=False) for call in calls)
        written["content"] = "\n".join(filter(None, [message["content"], *objects]))
    return written
