"""instructor: objects in all its modes, asked for again after errors of validation."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable
from enum import StrEnum
from typing import Annotated, Any, Literal

import instructor
import openai
from instructor.core.exceptions import InstructorRetryException
from pydantic import AfterValidator, BaseModel, Field, field_validator

from benchmarks.screens.frameworks.drivers.scenario import KEY, MODEL, Session, call, run


class Priority(StrEnum):
    low = "low"
    normal = "normal"
    urgent = "urgent"


class Ticket(BaseModel):
    """A support ticket, as the help desk files it."""

    title: str = Field(description="One line, without the customer's name")
    priority: Priority
    product: Literal["router", "modem", "television"]
    steps: list[str] = Field(description="What the customer has tried already", max_length=3)


class Invoice(BaseModel):
    """The head of an invoice."""

    number: str = Field(pattern=r"^INV-\d{6}$")
    total: float = Field(gt=0)
    currency: str = Field(min_length=3, max_length=3)
    due: str

    @field_validator("due")
    @classmethod
    def is_a_date(cls, value: str) -> str:
        if len(value.split("-")) != 3:
            raise ValueError("the due date must look like 2026-01-31")
        return value


class Contact(BaseModel):
    name: str
    email: str | None = None
    phone: str | None = Field(default=None, description="With the country's prefix")


class Step(BaseModel):
    reasoning: str = Field(description="Think step by step")
    sources: list[int] = Field(description="Numbers of the passages that were used")


class Answer(BaseModel):
    """An answer with its reasons."""

    chain: list[Step]
    answer: str


class Entity(BaseModel):
    name: str
    kind: Literal["person", "organisation", "place"]


def _upper(value: str) -> str:
    if value != value.upper():
        raise ValueError("The code must be in capital letters.")
    return value


class Airport(BaseModel):
    code: Annotated[str, AfterValidator(_upper)]
    city: str


class Weather(BaseModel):
    """The weather in a city."""

    city: str


class Search(BaseModel):
    """A search on the web."""

    query: str


TICKET = {
    "title": "The router restarts every night",
    "priority": "urgent",
    "product": "router",
    "steps": ["new cable", "factory reset"],
}
COMPLAINT = (
    "Hi, since the update on Friday my router restarts each night around 2. I have changed the "
    "cable and reset it to factory settings. I work from home, so please hurry."
)
INVOICE = "Invoice INV-104233 of Contoso Ltd: 1,240.50 EUR, to be paid by 15 March 2026."
_MODES = ("TOOLS", "TOOLS_STRICT", "JSON", "JSON_SCHEMA", "MD_JSON", "RESPONSES_TOOLS")


def _client(session: Session, mode: str) -> Any:
    client = openai.OpenAI(base_url=session.url, api_key=KEY, max_retries=0)
    return instructor.from_openai(client, mode=getattr(instructor.Mode, mode))


def _reply(mode: str, kind: type[BaseModel], value: dict[str, Any]) -> Any:
    if "TOOLS" in mode:
        return [call(kind.__name__, value)]
    text = json.dumps(value)
    return f"```json\n{text}\n```" if mode == "MD_JSON" else text


def ticket_in_each_mode(session: Session) -> None:
    system = "You file tickets for the help desk of an internet provider. Keep to what was said."
    for mode in _MODES:
        session.play(_reply(mode, Ticket, TICKET))
        messages = [{"role": "system", "content": system}, {"role": "user", "content": COMPLAINT}]
        _client(session, mode).create(model=MODEL, messages=messages, response_model=Ticket)


def retries_in_each_mode(session: Session) -> None:
    wrong = {"number": "104233", "total": -1, "currency": "Euro", "due": "15 March 2026"}
    better = {"number": "INV-104233", "total": 1240.5, "currency": "EUR", "due": "15 March 2026"}
    right = better | {"due": "2026-03-15"}
    for mode in _MODES:
        session.play(*(_reply(mode, Invoice, value) for value in (wrong, better, right)))
        _client(session, mode).create(
            model=MODEL,
            messages=[{"role": "user", "content": f"Extract the invoice: {INVOICE}"}],
            response_model=Invoice,
            max_retries=3,
        )


def retries_exhausted(session: Session) -> None:
    session.play(*[[call("Airport", {"code": "ber", "city": "Berlin"})]] * 3)
    with contextlib.suppress(InstructorRetryException):
        _client(session, "TOOLS").create(
            model=MODEL,
            messages=[{"role": "user", "content": "Which airport is closest to Potsdam?"}],
            response_model=Airport,
            max_retries=2,
        )


def broken_json(session: Session) -> None:
    for mode in ("JSON", "TOOLS"):
        value = {"code": "HAM", "city": "Hamburg"}
        broken = '{"code": "HAM", "city": "Hamb'
        first = [call("Airport", broken)] if mode == "TOOLS" else broken
        session.play(first, _reply(mode, Airport, value))
        _client(session, mode).create(
            model=MODEL,
            messages=[{"role": "user", "content": "The airport for a trip to Lüneburg, please."}],
            response_model=Airport,
            max_retries=2,
        )


def lists_and_parallel_calls(session: Session) -> None:
    text = "Marie Curie left Warsaw for Paris, where she worked at the Sorbonne."
    found = [{"name": "Marie Curie", "kind": "person"}, {"name": "Paris", "kind": "place"}]
    session.play([call("IterableEntity", {"tasks": found})])
    _client(session, "TOOLS").create(
        model=MODEL,
        messages=[{"role": "user", "content": f"List all entities in: {text}"}],
        response_model=list[Entity],
    )
    session.play([call("Weather", {"city": "Oslo"}), call("Search", {"query": "ferry to Oslo"})])
    client = _client(session, "PARALLEL_TOOLS")
    list(
        client.create(
            model=MODEL,
            messages=[
                {"role": "system", "content": "You must always use tools."},
                {"role": "user", "content": "How is the weather in Oslo, and is there a ferry?"},
            ],
            response_model=Iterable[Weather | Search],
        )
    )


def maybe_and_unions(session: Session) -> None:
    session.play([call("MaybeContact", {"result": None, "error": True, "message": "No contact"})])
    _client(session, "TOOLS").create(
        model=MODEL,
        messages=[{"role": "user", "content": "Extract the contact: the office is closed today."}],
        response_model=instructor.Maybe(Contact),
    )
    session.play([call("Contact", {"name": "Sven", "email": "sven@contoso.example"})])
    signature = "Best regards, Sven, Contoso support, sven@contoso.example, +46 8 555 010 20"
    _client(session, "TOOLS").create(
        model=MODEL,
        messages=[{"role": "user", "content": f"Who wrote this mail?\n\n{signature}"}],
        response_model=Contact,
    )


def answer_from_passages(session: Session) -> None:
    passages = (
        "[1] The warranty covers defects of material for 24 months.\n"
        "[2] Batteries are covered for 6 months.\n"
        "[3] Damage by water is not covered."
    )
    value = {"chain": [{"reasoning": "Passage 2 names batteries.", "sources": [2]}], "answer": "6"}
    for mode in ("TOOLS", "MD_JSON"):
        session.play(_reply(mode, Answer, value))
        _client(session, mode).create(
            model=MODEL,
            messages=[
                {
                    "role": "system",
                    "content": "Answer the question with the passages below alone. If they do not "
                    "have the answer, say so; do not make anything up.",
                },
                {"role": "user", "content": f"{passages}\n\nHow long is the battery covered?"},
            ],
            response_model=Answer,
        )


def validated_by_a_model(session: Session) -> None:
    client = _client(session, "TOOLS")
    rule = "The text must be polite and must not promise a refund."

    class Letter(BaseModel):
        body: Annotated[
            str,
            AfterValidator(
                instructor.llm_validator(rule, client=client, model=MODEL, allow_override=True)
            ),
        ]

    session.play(
        [call("Letter", {"body": "You will get your money back, promised."})],
        [call("Validator", {"is_valid": False, "reason": "It promises a refund."})],
        [call("Letter", {"body": "We are sorry, and look into it."})],
        [call("Validator", {"is_valid": True, "reason": None})],
    )
    client.create(
        model=MODEL,
        messages=[{"role": "user", "content": "Answer this complaint: the parcel came broken."}],
        response_model=Letter,
        max_retries=2,
    )


def a_long_conversation(session: Session) -> None:
    session.play(_reply("TOOLS", Ticket, TICKET))
    messages = [
        {"role": "system", "content": "You are a patient assistant of a help desk."},
        {"role": "user", "content": "My television shows no picture."},
        {"role": "assistant", "content": "Is the little light at the front on?"},
        {"role": "user", "content": "It is red."},
        {"role": "assistant", "content": "Please hold the power button for ten seconds."},
        {"role": "user", "content": "Now it blinks. Just file a ticket, I have to go."},
    ]
    _client(session, "TOOLS").create(model=MODEL, messages=messages, response_model=Ticket)


if __name__ == "__main__":
    run(
        [
            ticket_in_each_mode,
            retries_in_each_mode,
            retries_exhausted,
            broken_json,
            lists_and_parallel_calls,
            maybe_and_unions,
            answer_from_passages,
            validated_by_a_model,
            a_long_conversation,
        ]
    )
