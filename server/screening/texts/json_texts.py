"""Every text of a JSON body, with its place.

Texts are not chosen by the names of their fields: a field that OpenAI's schema gets tomorrow is
read as well. Left out are words of the protocol (a model's name, an id), and content that is not
text, whose kinds are reported.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterator
from dataclasses import dataclass, field
from typing import Any

from guard.config.schema import Place
from server.screening.errors import TooManyTexts, UnreadableAnswer
from server.wire.strict_json import MAX_DEPTH, NestedTooDeeply

MAX_TEXTS = 20_000
"""Texts of a request or a response."""

_PROTOCOL = frozenset(
    {
        *("model", "role", "type", "object", "id", "tool_call_id", "call_id", "item_id", "status"),
        *("detail", "encoding_format", "response_format", "service_tier", "tool_choice", "format"),
        *("finish_reason", "stop_reason", "native_finish_reason", "system_fingerprint", "effort"),
        *("size", "quality", "style", "background", "output_format", "voice", "truncation"),
        *("reasoning_effort", "verbosity", "moderation", "media_type", "file_id", "summary"),
        *("previous_response_id", "prompt_cache_key", "prompt_cache_retention", "include", "user"),
        *("safety_identifier", "created", "first_id", "last_id", "owned_by", "phase", "logprob"),
    }
)
"""Keys whose values are words of the protocol; a value that is not such a word is read."""
_WORD = re.compile(r"[\w.:/@+-]{0,80}", re.ASCII)

_OPAQUE = {
    "image_url": "pictures",
    "video_url": "pictures",
    "audio_url": "audio",
    "image_embeds": "pictures",
    "prompt_embeds": "tokens",
    "b64_json": "pictures",
    "partial_image_b64": "pictures",
    "input_audio": "audio",
    "file_data": "files",
    "embedding": "numbers",
    "encrypted_content": "numbers",
    "signature": "numbers",
}
"""Keys of encoded content that is not text, and its kind."""
_CODED = re.compile(r"[^\s\x00-\x1f]*")
"""A code or an address: a value with spaces in it is read, whatever its key."""
_TOKENS = frozenset({"logprobs", "top_logprobs"})
_OPAQUE_PARTS = {
    "image": "pictures",
    "image_url": "pictures",
    "input_image": "pictures",
    "image_generation_call": "pictures",
    "image_embeds": "pictures",
    "video_url": "pictures",
    "input_video": "pictures",
    "audio_url": "audio",
    "input_audio": "audio",
    "audio": "audio",
    "file": "files",
    "input_file": "files",
    "document": "files",
    "container_upload": "files",
}
"""Values of `type` whose part holds content that is not text, under `_CARRIERS`."""
_TEXT_SOURCES = frozenset({"text", "content"})
"""Values of `type` of a document's source that is text nevertheless."""
_CARRIERS = frozenset({"image_url", "url", "data", "file_data", "file_url", "source", "result"})
_FILES = {"image": "pictures", "image[]": "pictures", "mask": "pictures"}
"""The kinds of a form's files, by the names of their fields."""
_FREE = frozenset(
    {
        *("input", "arguments", "parameters", "schema", "json_schema", "guided_json"),
        *("metadata", "chat_template_kwargs", "tools", "functions", "text"),
    }
)
"""Objects whose names the client or the model chooses: the protocol has no words in them."""
_SCHEMA_WORDS = frozenset(
    {
        *("string", "object", "number", "integer", "boolean", "array", "null", "function", "type"),
        *("properties", "required", "description", "parameters", "name", "items", "enum", "format"),
        *("schema", "strict", "json_schema", "text", "arguments", "id", "additionalProperties"),
    }
)
_ROLES: dict[str, Place] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}
_PLACES: dict[str, Place] = {
    "system": "system",
    "instructions": "system",
    "tool_calls": "arguments",
    "function_call": "arguments",
    "arguments": "arguments",
    "tools": "arguments",
    "functions": "arguments",
    "json_schema": "arguments",
}
_PARTS: dict[str, Place] = {
    "tool_use": "arguments",
    "function_call": "arguments",
    "custom_tool_call": "arguments",
    "tool_result": "tool",
    "function_call_output": "tool",
    "custom_tool_call_output": "tool",
}
"""Places by the `type` of the part they are in."""
_CONVERSATION = frozenset({"messages", "input"})
_PROMPTS = frozenset({"prompt", "input"})
"""Where a list of numbers is a text as token ids."""
_LISTS = frozenset({"messages", "input", "tools", "functions", "prompt"})
"""Lists of which each item is a unit."""


@dataclass(slots=True)
class JsonText:
    """A string of a body: `holder[key]` is `text`. A `path` looks like "messages[1].content".

    Strings that belong together have the same `unit`: the parts of a message, the fields of a tool.
    `is_key`: the string is a name in an object, which cannot be rewritten.
    """

    holder: Any
    key: str | int
    text: str
    place: Place
    path: str
    unit: int
    is_key: bool = False

    def write(self, text: str) -> None:
        """Replace the text in the body."""
        self.holder[self.key] = text
        self.text = text


@dataclass(slots=True)
class _Position:
    """Where a value stands; `opaque` is the kind of content that carriers in it hold."""

    holder: Any
    key: str | int
    place: Place
    path: str
    depth: int
    opaque: str | None = None
    free: bool = False


@dataclass(slots=True)
class JsonTexts:
    """The texts of a body, and the kinds of content that is not text ("pictures", "audio")."""

    pieces: list[JsonText] = field(default_factory=list)
    opaque: set[str] = field(default_factory=set)

    def units(self) -> Iterator[list[JsonText]]:
        """The pieces that belong together, in the order of the body."""
        by_unit: dict[int, list[JsonText]] = {}
        for piece in self.pieces:
            by_unit.setdefault(piece.unit, []).append(piece)
        yield from by_unit.values()


def texts_of(body: Any, place: Place, *, skip_verdicts: bool = False) -> JsonTexts:
    """The texts of a parsed body; `place` is the default. Raises NestedTooDeeply, and
    TooManyTexts or, for a response, UnreadableAnswer.

    `skip_verdicts`: the `guard` objects in the body are this server's own, and are not read.
    """
    collector = _Collector(place, skip_verdicts)
    collector.value(body, _Position(None, "", place, "", 0))
    return collector.texts


class _Collector:
    def __init__(self, default_place: Place, skip_verdicts: bool) -> None:
        self.default_place, self.skip_verdicts = default_place, skip_verdicts
        self.texts = JsonTexts()
        self._unit = 0

    def value(self, value: Any, at: _Position) -> None:
        if isinstance(value, str):
            if value:
                self._add(value, at)
        elif isinstance(value, dict):
            self._object(value, at)
        elif isinstance(value, list):
            self._array(value, at)
        elif isinstance(value, bytes) and value:
            self.texts.opaque.add(_FILES.get(str(at.key), "files"))

    def _add(self, text: str, at: _Position, *, is_key: bool = False) -> None:
        if len(self.texts.pieces) >= MAX_TEXTS:
            if self.default_place == "response":
                raise UnreadableAnswer(f"The answer has more than {MAX_TEXTS} texts.")
            raise TooManyTexts(MAX_TEXTS)
        piece = JsonText(at.holder, at.key, text, at.place, at.path, self._unit, is_key)
        self.texts.pieces.append(piece)

    def _object(self, value: dict[str, Any], at: _Position) -> None:
        if at.depth > MAX_DEPTH:
            raise NestedTooDeeply()
        opaque, place = at.opaque, at.place
        if not at.free:
            opaque, place = self._part_kind(value, at)
        for name, item in value.items():
            if at.depth == 0:
                self._unit += 1
            if self.skip_verdicts and name == "guard" and not at.free:
                continue
            path = f"{at.path}.{name[:40]}" if at.path else name[:40]
            is_placed = self.default_place != "response" and not at.free
            item_place = _PLACES.get(name, place) if is_placed else place
            free = at.free or (name in _FREE and isinstance(item, dict | list) and at.depth < 9)
            inside = _Position(value, name, item_place, path, at.depth + 1, free=free)
            if name not in _SCHEMA_WORDS if at.free else not _WORD.fullmatch(name):
                self._add(name, inside, is_key=True)
            kind = _OPAQUE.get(name) or (opaque if name in _CARRIERS else None)
            if at.free:
                if not (isinstance(item, str) and item in _SCHEMA_WORDS):
                    self.value(item, inside)
            elif isinstance(item, str):
                if kind is not None and _CODED.fullmatch(item):
                    self._add_opaque(kind, item)
                elif not (name in _PROTOCOL and _WORD.fullmatch(item)):
                    self.value(item, inside)
            # log probabilities spell the text once more
            elif not (name in _TOKENS and self.default_place == "response"):
                inside.opaque = None if kind == "numbers" else kind
                self.value(item, inside)

    def _part_kind(self, value: dict[str, Any], at: _Position) -> tuple[str | None, Place]:
        """The kind of content that carriers in a part hold, and the place of its texts."""
        kind, role, opaque, place = value.get("type"), value.get("role"), at.opaque, at.place
        if isinstance(kind, str):
            opaque = None if kind in _TEXT_SOURCES else _OPAQUE_PARTS.get(kind, opaque)
            source = value.get("source")
            is_text = isinstance(source, dict) and source.get("type") in _TEXT_SOURCES
            if kind in _OPAQUE_PARTS and not is_text:
                # content by reference is not read either
                self.texts.opaque.add(_OPAQUE_PARTS[kind])
        if self.default_place == "response" or not _in_conversation(at.path):
            return opaque, place
        if at.depth == 2 and isinstance(role, str):
            return opaque, _ROLES.get(role, place)
        if isinstance(kind, str):
            place = _PARTS.get(kind, place)
        return opaque, place

    def _array(self, value: list[Any], at: _Position) -> None:
        if at.depth > MAX_DEPTH:
            raise NestedTooDeeply()
        if (
            self.default_place != "response"
            and at.path.partition("[")[0] in _PROMPTS
            and _has_token_ids(value)
        ):
            self.texts.opaque.add("tokens")
        for index, item in enumerate(value):
            if at.depth == 1 and at.key in _LISTS:
                self._unit += 1
            path = f"{at.path}[{index}]"
            inside = _Position(value, index, at.place, path, at.depth + 1, at.opaque, at.free)
            inside.free = at.free and at.key not in {"messages", "input"}
            self.value(item, inside)

    def _add_opaque(self, kind: str, item: str) -> None:
        if item and kind != "numbers":
            self.texts.opaque.add(kind)


def _in_conversation(path: str) -> bool:
    return path.partition("[")[0] in _CONVERSATION


def _has_token_ids(value: list[Any]) -> bool:
    return any(isinstance(item, int | float) and not isinstance(item, bool) for item in value)


def conversation(texts: JsonTexts, turns: int, places: Container[Place]) -> list[JsonText]:
    """The texts of the last `turns` messages of users and tools, of those whose place is read."""
    messages = [
        unit
        for unit in texts.units()
        if unit[0].place in {"user", "tool"}
        and unit[0].place in places
        and unit[0].path.partition("[")[0] in _CONVERSATION
    ]
    return [piece for unit in messages[-turns:] for piece in unit]
