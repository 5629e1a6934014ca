"""What a model's chat template does with tools, found by rendering with it once, at load."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from server.services.tools import FAMILIES, family_of
from server.services.tools.family import ToolFamily
from server.services.tools.generic import with_tools_as_text

Message = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """How a model is told of tools, and how it calls them.

    `in_template`: its chat template renders tools; else they stand in the system prompt, as text.
    `arguments_as_text`: the template takes the arguments of earlier calls as JSON text alone.
    `shown`: special tokens that open calls, by id, which are text in answers to requests with
    tools.
    """

    family: ToolFamily
    in_template: bool = True
    arguments_as_text: bool = False
    shown: Mapping[int, str] = field(default_factory=dict)

    def for_template(
        self, messages: Sequence[Message], tools: Sequence[Message]
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """`messages` and `tools`, both in the form of OpenAI's chats, as the template takes them.

        Arguments of earlier calls are objects.
        """
        if not self.in_template:
            return with_tools_as_text(messages, tools), []
        return [self._message(message) for message in messages], [dict(tool) for tool in tools]

    def _message(self, message: Message) -> dict[str, Any]:
        written = dict(message)
        if "tool_calls" in message:
            written["tool_calls"] = [self._call(call) for call in message["tool_calls"]]
        if "tool_call_id" in message:
            written["tool_call_id"] = self.family.id_for_template(message["tool_call_id"])
        return written

    def _call(self, call: Message) -> dict[str, Any]:
        function = dict(call["function"])
        if self.arguments_as_text:
            function["arguments"] = json.dumps(function["arguments"], ensure_ascii=False)
        call_id = self.family.id_for_template(call["id"])
        return {"id": call_id, "type": "function", "function": function}


def tool_format(tokenizer: Any, parser: str | None = None) -> ToolFormat | None:
    """The format of a model with this tokenizer of transformers; None where its chat template knows
    no tools.

    `parser` names a family, whatever the template looks like; "json" also tells a model of tools
    whose template knows none.
    """
    templates = tokenizer.chat_template or ""
    if isinstance(templates, dict):
        templates = "".join(templates.values())
    family = family_of(templates) if parser is None else FAMILIES[parser]
    shown = _shown(tokenizer, family)
    if not _rendered(tokenizer, [_ASKED], _TOOLS, expected=_NAME):
        return ToolFormat(family, False, shown=shown) if parser == "json" else None
    form = ToolFormat(family, shown=shown)
    called = [_ASKED, _CALLED, _RESULT]
    as_objects = _rendered(tokenizer, form.for_template(called, _TOOLS)[0], _TOOLS, '"guardkey"')
    return ToolFormat(family, True, not as_objects, shown)


_NAME = "guardprobe"
_TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": _NAME,
            "description": "Probes.",
            "parameters": {"type": "object", "properties": {}},
        },
    }
]
_ASKED: Message = {"role": "user", "content": "Probe."}
_CALLED: Message = {
    "role": "assistant",
    "content": "",
    "tool_calls": [
        {
            "id": "probe0001",
            "type": "function",
            "function": {"name": _NAME, "arguments": {"guardkey": "value"}},
        }
    ],
}
_RESULT: Message = {"role": "tool", "content": "4", "tool_call_id": "probe0001", "name": _NAME}


def _rendered(
    tokenizer: Any, messages: Sequence[Message], tools: Sequence[Message], expected: str
) -> bool:
    """Whether the template takes the messages, and writes what is expected."""
    try:
        text = tokenizer.apply_chat_template(list(messages), tools=list(tools), tokenize=False)
    except Exception:  # templates are programs: they raise what they like
        return False
    return expected in str(text)


def _shown(tokenizer: Any, family: ToolFamily) -> dict[int, str]:
    names = {name for opening in family.openings for name in _texts(opening)}
    added = tokenizer.backend_tokenizer.get_added_tokens_decoder()
    return {
        token_id: token.content
        for token_id, token in added.items()
        if token.special and token.content in names
    }


def _texts(opening: Any) -> Iterable[str]:
    return (opening.text, opening.close, *opening.separators)
