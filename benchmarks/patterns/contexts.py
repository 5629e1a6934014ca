"""Kinds of text that values stand in.

Half of them are held out: rules were written with the misses of `DEVELOPMENT` in sight alone, and
figures are given for `HELD_OUT`.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple
from urllib.parse import quote

from faker import Faker

from benchmarks.patterns.labels import has_form
from benchmarks.patterns.values import Value


class Text(NamedTuple):
    """text[start:end] is a value of `kind`."""

    kind: str
    context: str
    text: str
    start: int
    end: int
    labelled: bool
    row: str
    """The kind, or "KIND, digits alone" where neither a label nor a form tells what it is."""


class Filler:
    """Harmless words and numbers around a value."""

    def __init__(self, seed: int) -> None:
        self._fake = Faker("en_US")
        self._fake.seed_instance(seed)
        self.draw = random.Random(seed)

    def sentence(self) -> str:
        return str(self._fake.sentence())

    def word(self) -> str:
        return str(self._fake.word())

    def number(self) -> int:
        return self.draw.randrange(10_000)


Write = Callable[[Filler, str, str | None], str]
"""A text of a value that is marked out, and its label."""


def _prose(fill: Filler, value: str, label: str | None) -> str:
    named = fill.draw.choice(
        (f"{label}: {value}", f"My {label} is {value}", f"the {label} {value}")
    )
    bare = fill.draw.choice((f"Please use {value}", f"It is {value}", f"We have {value} on file"))
    end = fill.draw.choice((".", ",", " by noon.", " and thanks.", "", " before Friday"))
    return f"{fill.sentence()} {named if label else bare}{end} {fill.sentence()}"


def _csv(fill: Filler, value: str, label: str | None) -> str:
    cell = f'"{value}"' if any(sign in value for sign in ',\n"') else value
    sign = fill.draw.choice((",", ";", "\t", "|"))
    cells = [str(fill.number()), fill.word(), *([label] if label else []), cell, fill.word()]
    return f"id{sign}name{sign}value\n{sign.join(cells)}\n"


def _json(fill: Filler, value: str, label: str | None) -> str:
    body = {"id": fill.number(), label or "value": value, "note": fill.sentence()}
    return json.dumps(body, indent=fill.draw.choice((None, 2)), ensure_ascii=False)


def _markdown(fill: Filler, value: str, label: str | None) -> str:
    name = label or fill.word()
    return fill.draw.choice(
        (
            f"## {fill.sentence()}\n\n- **{name}**: {value}\n- {fill.sentence()}\n",
            f"| {name} | {value} |\n| --- | --- |\n",
            f"> {name}: `{value}`\n\n{fill.sentence()}",
        )
    )


def _code(fill: Filler, value: str, label: str | None) -> str:
    name = (label or fill.word()).replace(" ", "_").replace("-", "_")
    quoted = json.dumps(value, ensure_ascii=False)
    return fill.draw.choice(
        (
            f"def {fill.word()}():\n    {name} = {quoted}\n    return {name}[:{fill.number()}]\n",
            f"const {name} = {quoted};\nconsole.log({name});\n",
            f"client = Client({name}={quoted}, retries=3)\n",
        )
    )


def _nested(fill: Filler, value: str, label: str | None) -> str:
    inner = json.dumps({label or "value": value, "n": fill.number()}, ensure_ascii=False)
    return json.dumps({"name": fill.word(), "arguments": inner}, ensure_ascii=False)


def _log(fill: Filler, value: str, label: str | None) -> str:
    name = f"{label}=" if label else fill.draw.choice(("", "value=", "got "))
    day, minute, part = 1 + fill.number() % 28, fill.number() % 60, fill.number() % 1000
    stamp = f"2024-03-{day:02d} 12:{minute:02d}:07,{part:03d}"
    return (
        f"{stamp} INFO  [worker-{fill.number()}] {fill.word()}.{fill.word()} {name}{value}"
        f" status=200 took={fill.number()}ms\n{stamp} DEBUG {fill.sentence()}\n"
    )


def _url(fill: Filler, value: str, label: str | None) -> str:
    name = quote((label or fill.word()).replace(" ", "_"))
    shown = quote(value, safe="@+:")
    return f"https://{fill.word()}.example/{fill.word()}?{name}={shown}&page={fill.number() % 50}"


def _chat(fill: Filler, value: str, label: str | None) -> str:
    said = f"{label} {value}" if label else value
    return f"User: {fill.sentence().lower()}\nUser: ok {said} thx\nBot: {fill.sentence()}\n"


DEVELOPMENT: Final[Mapping[str, Write]] = {
    "prose": _prose,
    "CSV": _csv,
    "JSON": _json,
    "Markdown": _markdown,
    "code": _code,
}
HELD_OUT: Final[Mapping[str, Write]] = {
    "JSON in JSON": _nested,
    "logs": _log,
    "URLs": _url,
    "chat": _chat,
}
_FIRST, _LAST = "\x01", "\x02"
_ONE_LINE: Final = frozenset({"URLs", "chat"})


def written(fill: Filler, context: str, value: Value, label: str | None) -> Text | None:
    """A text with the value; None where the context has no room for one of its kind."""
    write = {**DEVELOPMENT, **HELD_OUT}[context]
    if context in _ONE_LINE and "\n" in value.text:
        return None
    if context == "URLs" and value.kind in ("PASSWORD", "DATE_OF_BIRTH", "JWT"):
        return None
    marked = write(fill, f"{_FIRST}{value.text}{_LAST}", label)
    for sign in (_FIRST, _LAST):
        # as JSON and addresses escape it, once or twice
        for form in (json.dumps(json.dumps(sign))[3:-3], json.dumps(sign)[1:-1], quote(sign)):
            marked = marked.replace(form, sign)
    start = marked.index(_FIRST)
    end = marked.index(_LAST) - 1
    text = marked.replace(_FIRST, "").replace(_LAST, "")
    row = value.kind if label or has_form(value) else f"{value.kind}, digits alone"
    return Text(value.kind, context, text, start, end, label is not None, row)
