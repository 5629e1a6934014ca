"""Every text of a JSON body, with its place.

Texts are not chosen by the names of their fields: a field that OpenAI's schema gets tomorrow is
read as well. Left out are words that the protocol defines (a role, a type), and content that is not
text, whose kinds are reported. A string that is JSON is read as its values, and a value with the
name of its member: a date is one of birth where that says so.
"""

from __future__ import annotations

import json
import re
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Literal

from guard.config.schema import Place
from server.screening.errors import TooManyTexts, UnreadableAnswer
from server.screening.spans import Span
from server.screening.texts.json_documents import JsonDocument, Number
from server.screening.texts.json_fields import (
    CARRIERS,
    CODED,
    CONVERSATION,
    FILES,
    FREE,
    KNOWN_WORDS,
    LISTS,
    LONGEST_WORD,
    NAME,
    OPAQUE,
    OPAQUE_PARTS,
    PARTS,
    PLACES,
    PROMPTS,
    PROTOCOL,
    ROLES,
    SCHEMA_WORDS,
    SCHEMAS,
    SHORTEST_NUMBER,
    TEMPLATES,
    TEXT_SOURCES,
    TOKENS,
    WORD,
)
from server.screening.texts.json_scanner import plain_number
from server.wire.strict_json import MAX_DEPTH, NestedTooDeeply

MAX_TEXTS = 20_000
"""Texts of a request or a response."""
_WORD_BORDER = re.compile(r"[_\s-]+|(?<=[a-z0-9])(?=[A-Z])")
_LONGEST_NAME = 80
Kind = Literal["text", "value", "number", "name", "schema", "key", "label"]


@dataclass(slots=True)
class JsonText:
    """A string or a number of a body: `holder[key]` is `text`. A `path` looks like
    "messages[1].content".

    Texts that belong together have the same `unit`: the parts of a message, the fields of a tool.
    `kind`: a "value" and a "number" stand in an object whose names are the client's, or in JSON in
    a string, of which a "name" is one too. A "schema" is a string of an object that describes
    values. A "key" is a name in an object, which cannot be rewritten. A "label" is a name that the
    protocol asks for, such as an id: no part of what is said. `context` stands before the text
    where it is read. `signed` is an object whose signature covers the text, behind its list.
    """

    holder: Any
    key: str | int
    text: str
    place: Place
    path: str
    unit: int
    kind: Kind = "text"
    context: str = ""
    signed: tuple[list[Any], Any] | None = None

    @property
    def is_key(self) -> bool:
        """Whether the text is a name in an object."""
        return self.kind == "key"

    @property
    def reading(self) -> str:
        """The text as it is read."""
        return self.context + (plain_number(self.text) if self.kind == "number" else self.text)

    def spans(self, found: Iterable[Span]) -> list[Span]:
        """Spans of `reading` as spans of `text`; of a number, the whole number."""
        skipped, length = len(self.context), len(self.text)
        spans = [
            Span(max(0, span.start - skipped), span.end - skipped, span.label)
            for span in found
            if span.end > skipped
        ]
        return [Span(0, length, spans[0].label)] if spans and self.kind == "number" else spans

    def write(self, text: str) -> None:
        """Replace the text in the body; a text that is in a signed object takes that away."""
        if self.signed is None:
            is_number = isinstance(text, Number) and not isinstance(self.holder, JsonDocument)
            self.holder[self.key] = json.loads(text) if is_number else text
            self.text = text
            return
        items, item = self.signed
        items[:] = [other for other in items if other is not item]
        self.text = ""


@dataclass(slots=True)
class _Position:
    """Where a value stands; `opaque` is the kind of content that carriers in it hold.

    `kind` is that of its strings. `name` is the name of the nearest member above. `items` is the
    list that an object is in.
    """

    holder: Any
    key: str | int
    place: Place
    path: str
    depth: int
    opaque: str | None = None
    kind: Literal["text", "value", "schema"] = "text"
    name: str = ""
    items: list[Any] | None = None
    signed: tuple[list[Any], Any] | None = None

    @property
    def free(self) -> bool:
        """Whether the protocol has no words here."""
        return self.kind != "text"


@dataclass(slots=True)
class JsonTexts:
    """The texts of a body, and the kinds of content that is not text ("pictures", "audio")."""

    pieces: list[JsonText] = field(default_factory=list)
    opaque: set[str] = field(default_factory=set)
    documents: list[JsonDocument] = field(default_factory=list)
    """The strings that are JSON, outer ones first."""

    def write_back(self) -> None:
        """Put the new texts of values into the strings of JSON that they are in."""
        for document in reversed(self.documents):
            document.write_back()

    def at(self, places: Container[Place]) -> list[JsonText]:
        """The pieces at `places`."""
        return [piece for piece in self.pieces if piece.place in places]

    def units(self) -> Iterator[list[JsonText]]:
        """The pieces that belong together, in the order of the body."""
        by_unit: dict[int, list[JsonText]] = {}
        for piece in self.pieces:
            by_unit.setdefault(piece.unit, []).append(piece)
        yield from by_unit.values()


def texts_of(
    body: Any,
    place: Place,
    *,
    skip_verdicts: bool = False,
    are_whole: bool = True,
    without: Container[tuple[int, str | int]] = (),
) -> JsonTexts:
    """The texts of a parsed body; `place` is the default. Raises NestedTooDeeply, and
    TooManyTexts or, for a response, UnreadableAnswer.

    `skip_verdicts`: the `guard` objects in the body are this server's own, and are not read.
    `are_whole`: the strings are no parts of longer ones, so that JSON in them can be read as such.
    `without` has the `(id(holder), key)` of strings that are read elsewhere.
    """
    collector = _Collector(place, skip_verdicts, are_whole, without)
    collector.value(body, _Position(None, "", place, "", 0))
    return collector.texts


@lru_cache(4096)
def _known_word(text: str) -> bool:
    return WORD.fullmatch(text) is not None


@lru_cache(4096)
def _known_name(text: str) -> bool:
    return NAME.fullmatch(text) is not None


def _is_name(name: str) -> bool:
    """Whether a name in an object may be one of the protocol's."""
    return len(name) <= LONGEST_WORD and _known_name(name)


def _is_word(value: object) -> bool:
    """Whether a value is a word of the protocol, or a name as it takes them."""
    return isinstance(value, str) and len(value) <= LONGEST_WORD and _known_word(value)


def _says_nothing(value: object, is_response: bool) -> bool:
    """Whether the value of a member of the protocol is nothing to be read."""
    if is_response:
        return _is_word(value)
    return isinstance(value, str) and (not value or value in KNOWN_WORDS)


def context_of(name: str) -> str:
    """A name in an object as it is read before its value: "date of birth: "."""
    words = _WORD_BORDER.sub(" ", name[:_LONGEST_NAME]).strip()
    return f"{words}: " if words else ""


class _Collector:
    def __init__(
        self,
        default_place: Place,
        skip_verdicts: bool,
        are_whole: bool,
        without: Container[tuple[int, str | int]],
    ) -> None:
        self.default_place, self.skip_verdicts = default_place, skip_verdicts
        self._are_whole, self._without = are_whole, without
        self.texts = JsonTexts()
        self._unit = 0

    def value(self, value: Any, at: _Position) -> None:
        if isinstance(value, str):
            if value:
                self._string(value, at)
        elif isinstance(value, dict):
            self._object(value, at)
        elif isinstance(value, list):
            self._array(value, at)
        elif isinstance(value, bytes) and value:
            self.texts.opaque.add(FILES.get(str(at.key), "files"))
        elif at.kind == "value" and isinstance(value, int | float) and not isinstance(value, bool):
            self._number(str(value), at)

    def _add(self, text: str, at: _Position, kind: Kind) -> None:
        if len(self.texts.pieces) >= MAX_TEXTS:
            if self.default_place == "response":
                raise UnreadableAnswer(f"The answer has more than {MAX_TEXTS} texts.")
            raise TooManyTexts(MAX_TEXTS)
        context = context_of(at.name) if kind in {"value", "number"} else ""
        self.texts.pieces.append(
            JsonText(
                at.holder, at.key, text, at.place, at.path, self._unit, kind, context, at.signed
            )
        )

    def _number(self, text: str, at: _Position) -> None:
        if len(text) >= SHORTEST_NUMBER:
            self._add(text, at, "number")

    def _string(self, text: str, at: _Position) -> None:
        if (id(at.holder), at.key) in self._without:
            return
        reads_json = self._are_whole and at.depth <= MAX_DEPTH
        document = JsonDocument.of(at.holder, at.key, text) if reads_json else None
        if document is None:
            self._add(text, at, at.kind)
            return
        self.texts.documents.append(document)
        for index, leaf, inner in document.distinct():
            path = f"{at.path}.{leaf.key if _is_name(leaf.key) else '*'}" if leaf.key else at.path
            kind: Literal["text", "value"] = "text" if leaf.kind in {"plain", "name"} else "value"
            inside = replace(at, holder=document, key=index, path=path, depth=at.depth + 1)
            inside.kind, inside.name = kind, leaf.key
            if leaf.kind == "number":
                self._number(inner, inside)
            elif leaf.kind == "text":
                self._string(inner, inside)
            else:
                self._add(inner, inside, "name" if leaf.kind == "name" else "text")

    def _object(self, value: dict[str, Any], at: _Position) -> None:
        if at.depth > MAX_DEPTH:
            raise NestedTooDeeply()
        opaque, place, signed = at.opaque, at.place, at.signed
        if not at.free:
            opaque, place = self._part_kind(value, at)
            if at.items is not None and value.get("signature"):
                signed = (at.items, value)
        free, is_response = at.kind != "text", self.default_place == "response"
        for name, item in value.items():
            if at.depth == 0:
                self._unit += 1
            is_word = name in SCHEMA_WORDS if free else _is_name(name)
            # most members have nothing to be read
            if is_word and (
                not isinstance(item, str | dict | list | bytes)
                and not (at.kind == "value" or name in FREE)
                or (not free and name in PROTOCOL and _says_nothing(item, is_response))
            ):
                continue
            if self.skip_verdicts and name == "guard" and not free:
                continue
            # verdicts tell paths: a name that is not the protocol's may be what must not be told
            part = name if (is_word and not free) or _is_name(name) else "*"
            path = f"{at.path}.{part}" if at.path else part
            item_place = place if is_response or free else PLACES.get(name, place)
            inside = _Position(value, name, item_place, path, at.depth + 1, signed=signed)
            inside.kind, inside.name = self._kind(name, item, at), name if free else ""
            if not is_word:
                self._add(name, inside, "key")
            if not free:
                self._member(name, item, inside, opaque)
            elif not (isinstance(item, str) and item in SCHEMA_WORDS):
                self.value(item, inside)

    def _member(self, name: str, item: Any, inside: _Position, opaque: str | None) -> None:
        """A member whose name is one of the protocol's."""
        kind = OPAQUE.get(name) or (opaque if name in CARRIERS else None)
        is_response = self.default_place == "response"
        if not isinstance(item, str):
            # log probabilities spell the text once more
            if not (name in TOKENS and is_response):
                inside.opaque = None if kind == "numbers" else kind
                self.value(item, inside)
        elif kind is not None and CODED.fullmatch(item):
            self._add_opaque(kind, item)
        elif name in PROTOCOL and _is_word(item):
            if not _says_nothing(item, is_response):
                self._add(item, inside, "label")
        else:
            if name in TEMPLATES and not is_response:
                self.texts.opaque.add("templates")
            self.value(item, inside)

    def _kind(self, name: str, item: Any, at: _Position) -> Literal["text", "value", "schema"]:
        """The kind of the strings in a member."""
        is_container = isinstance(item, dict | list)
        if at.kind == "schema" or (name in SCHEMAS and is_container):
            return "schema"
        begins = name in FREE and is_container and not (at.depth == 0 and name in CONVERSATION)
        return "value" if at.free or begins else "text"

    def _part_kind(self, value: dict[str, Any], at: _Position) -> tuple[str | None, Place]:
        """The kind of content that carriers in a part hold, and the place of its texts."""
        kind, role, opaque, place = value.get("type"), value.get("role"), at.opaque, at.place
        if isinstance(kind, str):
            opaque = None if kind in TEXT_SOURCES else OPAQUE_PARTS.get(kind, opaque)
            source = value.get("source")
            is_text = isinstance(source, dict) and source.get("type") in TEXT_SOURCES
            if kind in OPAQUE_PARTS and not is_text:
                # content by reference is not read either
                self._add_opaque(OPAQUE_PARTS[kind], kind)
        if self.default_place == "response" or not _in_conversation(at.path):
            return opaque, place
        if at.depth == 2 and isinstance(role, str):
            return opaque, ROLES.get(role, place)
        if isinstance(kind, str):
            place = PARTS.get(kind, place)
        return opaque, place

    def _array(self, value: list[Any], at: _Position) -> None:
        if at.depth > MAX_DEPTH:
            raise NestedTooDeeply()
        if self.default_place != "response" and not at.free and _holds_tokens(value, at):
            self.texts.opaque.add("tokens")
        for index, item in enumerate(value):
            if at.depth == 1 and at.key in LISTS:
                self._unit += 1
            inside = _Position(
                value, index, at.place, f"{at.path}[{index}]", at.depth + 1, at.opaque
            )
            inside.kind, inside.name, inside.items = at.kind, at.name, value
            inside.signed = at.signed
            self.value(item, inside)

    def _add_opaque(self, kind: str, item: str) -> None:
        if item and kind != "numbers":
            self.texts.opaque.add(kind)


def _in_conversation(path: str) -> bool:
    return path.partition("[")[0] in CONVERSATION


def _holds_tokens(value: list[Any], at: _Position) -> bool:
    """Whether a list has numbers where they are tokens of a text."""
    if at.path.partition("[")[0] not in PROMPTS and at.key not in PROMPTS:
        return False
    return any(isinstance(item, int | float) and not isinstance(item, bool) for item in value)


def conversation(texts: JsonTexts, turns: int, places: Container[Place]) -> list[JsonText]:
    """The texts of the last `turns` messages of users and tools, of those whose place is read."""
    messages = [
        unit
        for unit in texts.units()
        if unit[0].place in {"user", "tool"}
        and unit[0].place in places
        and unit[0].path.partition("[")[0] in CONVERSATION
    ]
    return [piece for unit in messages[-turns:] for piece in unit]
