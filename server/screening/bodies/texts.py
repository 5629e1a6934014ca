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
from typing import Any, Literal

from guard.config.policy_schema import Place
from server.screening.bodies.documents import JsonDocument, Number, ObjectNames
from server.screening.bodies.fields import (
    CARRIERS,
    CODED,
    CONVERSATION,
    FILES,
    FREE,
    LEAST_NUMBER,
    LISTS,
    OPAQUE,
    OPAQUE_PARTS,
    PROTOCOL,
    ROLES,
    SCHEMA_WORDS,
    SCHEMAS,
    SECRET_CODE,
    SHORTEST_NUMBER,
    TEMPLATES,
    TEXT_SOURCES,
    TOKENS,
    is_name,
    is_word,
    says_nothing,
)
from server.screening.bodies.images import (
    PICTURES,
    JsonImage,
    has_no_image_yet,
    images_in,
    is_address_of_image,
)
from server.screening.bodies.numbers import holds_tokens, is_number, spelled
from server.screening.bodies.places import in_conversation, place_of_member, place_of_part
from server.screening.bodies.positions import Position
from server.screening.bodies.scanner import plain_number, require_few_levels
from server.screening.bodies.signed_items import SignedItems
from server.screening.errors import TooManyTexts, UnreadableAnswer
from server.screening.spans import Span
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
    values. A "key" is a name in an object of the protocol or of a schema, or the numbers of a list
    that spell a text, and cannot be rewritten. A "label" is a name that the protocol asks for, such
    as an id: no part of what is said. `context` stands before the text where it is read. `signed`
    is an object whose signature covers the text, behind its list.
    """

    holder: Any
    key: str | int
    text: str
    place: Place
    path: str
    unit: int
    kind: Kind = "text"
    context: str = ""
    signed: tuple[SignedItems, Any] | None = None

    @property
    def is_key(self) -> bool:
        """Whether the text cannot be rewritten where it stands."""
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
        """Replace the text in the body; a signed object that it is in goes at `write_back`."""
        if self.signed is None:
            is_number = isinstance(text, Number) and not isinstance(self.holder, JsonDocument)
            self.holder[self.key] = json.loads(text) if is_number else text
            self.text = text
            return
        items, item = self.signed
        items.gone.add(id(item))
        self.text = ""


@dataclass(slots=True)
class JsonTexts:
    """The texts and the images of a body, and the kinds of content that is not text ("pictures",
    "audio"), with the member of the body in which each is first."""

    pieces: list[JsonText] = field(default_factory=list)
    opaque: dict[str, str] = field(default_factory=dict)
    documents: list[JsonDocument] = field(default_factory=list)
    """The strings that are JSON, outer ones first."""
    signed: dict[int, SignedItems] = field(default_factory=dict)
    """Lists of signed objects, by their ids."""
    names: list[ObjectNames] = field(default_factory=list)
    """The names of objects whose names are the client's."""
    images: list[JsonImage] = field(default_factory=list)

    def write_back(self) -> None:
        """Put the new texts of values into the strings of JSON that they are in, then new names,
        and take away signed objects that would have changed."""
        for document in reversed(self.documents):
            document.write_back()
        for names in self.names:
            names.write_back()
        for items in self.signed.values():
            items.write_back()

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
    collector.value(body, Position(None, "", place, "", 0))
    return collector.texts


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

    def value(self, value: Any, at: Position) -> None:
        if isinstance(value, str):
            if value:
                self._string(value, at)
        elif isinstance(value, dict):
            self._object(value, at)
        elif isinstance(value, list):
            self._array(value, at)
        elif isinstance(value, bytes) and value:
            self._add_opaque(FILES.get(str(at.key), "files"), at, value)
        elif (
            at.kind == "value"
            and is_number(value)
            or self._is_told(value, at)
            and (isinstance(at.key, str) or self.default_place != "response")
        ):
            self._number(str(value), at)

    def _is_told(self, value: Any, at: Position) -> bool:
        """Whether a number among the protocol's may be a part of what is said: it stands in a
        message, or in an object that this server does not know."""
        if at.kind == "schema" or at.depth == 0 or at.key == "usage":
            return False
        return is_number(value) and abs(value) >= LEAST_NUMBER

    def _add(self, text: str, at: Position, kind: Kind) -> None:
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

    def _number(self, text: str, at: Position) -> None:
        if len(text) >= SHORTEST_NUMBER:
            self._add(text, at, "number")

    def _string(self, text: str, at: Position) -> None:
        if (id(at.holder), at.key) in self._without:
            return
        document = JsonDocument.of(at.holder, at.key, text) if self._are_whole else None
        if document is None:
            self._add_images(text, at)
            self._add(text, at, at.kind)
            return
        require_few_levels(at.nesting)
        self.texts.documents.append(document)
        for index, leaf, inner in document.distinct():
            path = f"{at.path}.{leaf.key if is_name(leaf.key) else '*'}" if leaf.key else at.path
            kind: Literal["text", "value"] = "text" if leaf.kind in {"plain", "name"} else "value"
            inside = replace(at, holder=document, key=index, path=path, depth=at.depth + 1)
            inside.kind, inside.name, inside.nesting = kind, leaf.key, at.nesting + 1
            if leaf.kind == "number":
                self._number(inner, inside)
            elif leaf.kind == "text":
                self._string(inner, inside)
            else:
                self._add_images(inner, inside)
                self._add(inner, inside, "name" if leaf.kind == "name" else "text")
        for numbers in document.lists_of_numbers():
            self._spelled(numbers, at)

    def _spelled(self, numbers: list[str], at: Position) -> None:
        if text := spelled(numbers):
            self._add(text, at, "key")

    def _add_images(self, text: str, at: Position) -> None:
        is_address = self.default_place == "response" and is_address_of_image(at.path)
        for value in [text] if is_address else images_in(text, at.path):
            self.texts.images.append(JsonImage(value, at.place, at.path, is_text=True))

    def _object(self, value: dict[str, Any], at: Position) -> None:
        if at.depth > MAX_DEPTH:
            raise NestedTooDeeply()
        opaque, place, signed = at.opaque, at.place, at.signed
        if not at.free:
            opaque, place = self._part_kind(value, at)
            if at.items is not None and value.get("signature"):
                items = self.texts.signed.setdefault(id(at.items), SignedItems(at.items))
                signed = (items, value)
        free, is_response = at.kind != "text", self.default_place == "response"
        names: ObjectNames | None = None
        for name, item in value.items():
            if at.depth == 0:
                self._unit += 1
            is_known = name in SCHEMA_WORDS if free else is_name(name)
            # most members have nothing to be read
            if is_known and (
                not isinstance(item, str | dict | list | bytes)
                and not (at.kind == "value" or name in FREE or self._is_told(item, at))
                or (not free and name in PROTOCOL and says_nothing(item, is_response))
            ):
                continue
            if self.skip_verdicts and name == "guard" and not free:
                continue
            # verdicts tell paths: a name that is not the protocol's may be what must not be told
            part = name if is_name(name) or name in OPAQUE or name in FILES else "*"
            path = f"{at.path}.{part}" if at.path else part
            item_place = place if is_response or free else place_of_member(name, place)
            inside = Position(value, name, item_place, path, at.depth + 1, signed=signed)
            inside.kind, inside.name = self._kind(name, item, at), name if free else ""
            if not is_known and at.kind == "value":
                names = names or self._names_of(value)
                self._add(name, replace(inside, holder=names), "name")
            elif not is_known:
                self._add(name, inside, "key")
            if not free:
                self._member(name, item, inside, opaque)
            elif not (isinstance(item, str) and item in SCHEMA_WORDS):
                self.value(item, inside)

    def _names_of(self, value: dict[str, Any]) -> ObjectNames:
        names = ObjectNames(value)
        self.texts.names.append(names)
        return names

    def _member(self, name: str, item: Any, inside: Position, opaque: str | None) -> None:
        """A member whose name is one of the protocol's."""
        kind = OPAQUE.get(name) or (opaque if name in CARRIERS else None)
        is_response = self.default_place == "response"
        if not isinstance(item, str):
            # log probabilities spell the text once more
            if not (name in TOKENS and is_response):
                inside.opaque = None if kind == "numbers" else kind
                self.value(item, inside)
        elif kind is not None and CODED.fullmatch(item):
            if kind != "numbers" or is_response or SECRET_CODE.fullmatch(item):
                if item and kind != "numbers":
                    self._add_opaque(kind, inside, item)
            elif item:
                self._add(item, inside, "label")
        elif name in PROTOCOL and is_word(item):
            if not says_nothing(item, is_response):
                self._add(item, inside, "label")
        else:
            if name in TEMPLATES and not is_response:
                self._add_opaque("templates", inside)
            if kind == PICTURES and item:
                # some decoders pass over what is no code
                self.texts.images.append(JsonImage(item, inside.place, inside.path, is_text=True))
            self.value(item, inside)

    def _kind(self, name: str, item: Any, at: Position) -> Literal["text", "value", "schema"]:
        """The kind of the strings in a member."""
        is_container = isinstance(item, dict | list)
        if at.kind == "schema" or (name in SCHEMAS and is_container):
            return "schema"
        begins = name in FREE and is_container and not (at.depth == 0 and name in CONVERSATION)
        return "value" if at.free or begins else "text"

    def _part_kind(self, value: dict[str, Any], at: Position) -> tuple[str | None, Place]:
        """The kind of content that carriers in a part hold, and the place of its texts."""
        kind, role, opaque, place = value.get("type"), value.get("role"), at.opaque, at.place
        if isinstance(kind, str):
            opaque = None if kind in TEXT_SOURCES else OPAQUE_PARTS.get(kind, opaque)
            source = value.get("source")
            is_text = isinstance(source, dict) and source.get("type") in TEXT_SOURCES
            if kind in OPAQUE_PARTS and not is_text:
                # content by reference is not read either
                is_empty = self.default_place == "response" and has_no_image_yet(value)
                self._add_opaque(OPAQUE_PARTS[kind], at, "" if is_empty else None)
        if self.default_place == "response" or not in_conversation(at.path):
            return opaque, place
        if at.depth == 2 and isinstance(role, str):
            return opaque, ROLES.get(role, place)
        if isinstance(kind, str):
            place = place_of_part(kind, place)
        return opaque, place

    def _array(self, value: list[Any], at: Position) -> None:
        if at.depth > MAX_DEPTH:
            raise NestedTooDeeply()
        has_tokens = self.default_place != "response" and not at.free and holds_tokens(value, at)
        if has_tokens:
            self._add_opaque("tokens", at)
        if at.kind == "value":
            self._spelled([str(item) for item in value if is_number(item)], at)
        for index, item in enumerate(value):
            if has_tokens and isinstance(item, int | float):
                continue
            if at.depth == 1 and at.key in LISTS:
                self._unit += 1
            inside = Position(
                value, index, at.place, f"{at.path}[{index}]", at.depth + 1, at.opaque
            )
            inside.kind, inside.name, inside.items = at.kind, at.name, value
            inside.signed = at.signed
            self.value(item, inside)

    def _add_opaque(self, kind: str, at: Position, value: str | bytes | None = None) -> None:
        self.texts.opaque.setdefault(kind, re.split(r"[.[]", at.path, maxsplit=1)[0])
        if kind == PICTURES and value != "":
            self.texts.images.append(JsonImage(value, at.place, at.path))
