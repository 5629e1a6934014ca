"""What the upstream answers, before it has the shape of an API."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

ADDRESS = "ada.byron@example.org"
CARD = "4111 1111 1111 1111"
SECRET = (
    "AKIA" + "Q3EGRIT2DVLT5K7Z"
)  # in two parts: nothing that looks for keys is to find one here

GREETING = 'Hello! "Grüße" — 100 % 🙂\n\tHow may I help?'
TOKENS_IN, TOKENS_OUT = 11, 7

_ADDRESS = re.compile(rf"{re.escape(ADDRESS)}|\[EMAIL_[0-9]+\]")
_CARD = re.compile(rf"{CARD}|\[CREDIT_CARD_[0-9]+\]")
_PIECE = 7


@dataclass(frozen=True)
class Asked:
    """What a request asks for, whatever its API."""

    raw: str
    stream: bool = False
    functions: tuple[str, ...] = ()
    has_result: bool = False
    """Whether a function's result is in it."""
    as_json: bool = False
    """Whether a text is to be JSON, and no function has to be called."""
    text: dict[str, Any] | None = None
    """The form of texts, which a response repeats."""
    usage: bool = False
    """Whether a stream is to tell how many tokens were used."""


@dataclass(frozen=True)
class Answer:
    """A text, or the call of a function with its arguments as JSON."""

    text: str = ""
    function: str = ""
    arguments: str = ""


def mail_arguments(address: str, card: str) -> dict[str, Any]:
    """The arguments of the function that is called."""
    return {"to": address, "text": f'Say "hi",\n{card}\n{address}\nÜ', "copies": 2}


def contact(address: str, card: str) -> dict[str, Any]:
    """The object that a structured answer is."""
    return {"name": "Ada", "email": address, "note": f'a "quote"\n{card}\n\\ Ü', "age": 36}


def sentence(address: str, card: str) -> str:
    """A text that repeats what the request has."""
    return f"I wrote to {address}\nthat {card} is charged; **{address}** will answer."


def blocked_text() -> str:
    """A text that a policy blocks at its end."""
    return f"The key of the account is {SECRET} as you know."


def answer_to(script: str, asked: Asked) -> Answer:
    """The answer that a script gives: a greeting, a call, an object, personal data, a secret."""
    address = _found(_ADDRESS, asked.raw, "the office")
    card = _found(_CARD, asked.raw, "nothing")
    if script == "call" and not asked.has_result:
        arguments = json.dumps(mail_arguments(address, card), ensure_ascii=False)
        return Answer(function=_only(asked.functions), arguments=arguments)
    if script == "object":
        text = json.dumps(contact(address, card), ensure_ascii=False)
        if asked.as_json:
            return Answer(text)
        return Answer(function=_only(asked.functions), arguments=text)
    if script == "secret":
        return Answer(blocked_text())
    if script in {"repeat", "call"}:
        return Answer(sentence(address, card))
    return Answer(GREETING)


def pieces(text: str) -> Iterator[str]:
    """A text as it is streamed: a few characters at a time."""
    for at in range(0, len(text), _PIECE):
        yield text[at : at + _PIECE]


def _found(pattern: re.Pattern[str], text: str, otherwise: str) -> str:
    match = pattern.search(text)
    return match[0] if match else otherwise


def _only(functions: tuple[str, ...]) -> str:
    return functions[0] if functions else "no_function_was_offered"
