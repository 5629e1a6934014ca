"""pydantic-ai: agents with tools, retries, typed outputs, delegation and histories."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, Field
from pydantic_ai import (
    Agent,
    ModelRetry,
    NativeOutput,
    PromptedOutput,
    RunContext,
    ToolOutput,
    UnexpectedModelBehavior,
)
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider

from benchmarks.screens.frameworks.drivers.scenario import KEY, MODEL, Session, call, run


@dataclass
class Bank:
    """What the tools of the bank's agent know."""

    customer: str
    balance: float


class Advice(BaseModel):
    """What the agent tells the customer."""

    text: str = Field(description="Advice returned to the customer")
    block_card: bool = Field(description="Whether to block their card or not")
    risk: int = Field(description="Risk level of the query", ge=0, le=10)


class Flight(BaseModel):
    """A flight that was found."""

    number: str
    price: int = Field(gt=0)
    origin: str = Field(description="Three-letter code of the airport")


class NoFlight(BaseModel):
    """When no flight was found."""


class Recipe(BaseModel):
    title: str
    minutes: int = Field(ge=1, le=600)
    ingredients: list[str] = Field(min_length=2)


def _models(session: Session) -> list[Any]:
    provider = OpenAIProvider(base_url=session.url, api_key=KEY)
    return [
        OpenAIChatModel(MODEL, provider=provider),
        OpenAIResponsesModel(MODEL, provider=provider),
    ]


def chat(session: Session) -> None:
    for model in _models(session):
        session.play("Rome.", "About 2.8 million.", "From the 5th to the 10th of August.")
        agent = Agent(model, instructions="Be concise, reply with one sentence.")
        first = agent.run_sync("What is the capital of Italy?")
        second = agent.run_sync("How many people live there?", message_history=first.all_messages())
        agent.run_sync("When is it hottest?", message_history=second.all_messages())


def bank_support(session: Session) -> None:
    for model in _models(session):
        agent = Agent(
            model,
            deps_type=Bank,
            output_type=Advice,
            instructions="You are a support agent in our bank. Give the customer support and judge "
            "the risk level of their query. Reply using the customer's name.",
        )

        def balance(ctx: RunContext[Bank], include_pending: bool) -> str:
            """The customer's current account balance.

            Args:
                include_pending: Whether pending transactions count.
            """
            return f"${ctx.deps.balance + (25 if include_pending else 0):.2f}"

        def name(ctx: RunContext[Bank]) -> str:
            return f"The customer's name is {ctx.deps.customer!r}"

        agent.tool(balance)
        agent.instructions(name)
        advice = {"text": "Your balance is $123.45, John.", "block_card": False, "risk": 1}
        session.play(
            [call("balance", {"include_pending": "perhaps"})],
            [call("balance", {"include_pending": True})],
            [call("final_result", {"text": "Yes", "block_card": False, "risk": 42})],
            [call("final_result", advice)],
        )
        agent.run_sync("What is my balance?", deps=Bank("John", 123.45))
        blocked = {"text": "I have blocked your card.", "block_card": True, "risk": 8}
        session.play([call("final_result", blocked)])
        agent.run_sync("I just lost my card!", deps=Bank("John", 123.45))


def tools_that_fail(session: Session) -> None:
    for model in _models(session):
        agent = Agent(model, instructions="You look up parcels. Use the tool, do not guess.")

        def track(parcel: str, country: str = "DE") -> dict[str, Any]:
            """Where a parcel is.

            Args:
                parcel: The number on the label, two letters and nine digits.
                country: Where it was posted.
            """
            if len(parcel) != 11:
                raise ModelRetry(f"{parcel!r} is no parcel number; ask for the one on the label.")
            return {"parcel": parcel, "status": "in customs", "since": "2026-11-02", "in": country}

        agent.tool_plain(track, retries=3)
        session.play(
            [call("track_parcel", {"parcel": "RR123456785"})],
            [call("track", {"number": "RR123456785"})],
            [call("track", {"parcel": "12"})],
            [call("track", {"parcel": "RR123456785"}), call("track", {"parcel": "RR473124829"})],
            "Both parcels are in customs.",
        )
        agent.run_sync("Where are my parcels RR123456785 and RR473124829?")


def outputs_of_each_kind(session: Session) -> None:
    wrong = '{"title": "Soup", "minutes": 900, "ingredients": ["water"]}'
    right = '{"title": "Soup", "minutes": 30, "ingredients": ["water", "leek"]}'
    for model in _models(session):
        for output in (
            NativeOutput(Recipe, name="recipe", description="One recipe"),
            PromptedOutput([Recipe], description="A recipe with few ingredients"),
        ):
            session.play("Here is a soup for you!", wrong, right)
            agent = Agent(model, output_type=output, retries=3)
            agent.run_sync("Something warm with leek, please.")
        session.play("Soup.", [call("recipe", wrong)], [call("recipe", right)])
        agent = Agent(model, output_type=ToolOutput(Recipe, name="recipe"), retries=3)
        agent.run_sync("Something cold with cucumber, please.")


def outputs_that_a_function_refuses(session: Session) -> None:
    (model, _) = _models(session)
    agent: Agent[None, Flight | NoFlight] = Agent(
        model,
        output_type=[Flight, NoFlight],
        system_prompt="Find the cheapest flight from the page. Call extract_flights first.",
        retries=3,
    )

    def extract_flights() -> str:
        """Get details of all flights on the page."""
        return "1. SFO to ANC, AK123, $315\n2. SFO to ANC, UA456, $420\n3. SFO to FAI, DL789, $280"

    def check(ctx: RunContext[None], flight: Flight | NoFlight) -> Flight | NoFlight:
        if isinstance(flight, Flight) and flight.origin != "SFO":
            raise ModelRetry(f"The flight should start in SFO, not {flight.origin}.")
        return flight

    agent.tool_plain(extract_flights)
    agent.output_validator(check)
    session.play(
        [call("extract_flights", {})],
        [call("final_result_Flight", {"number": "AK123", "price": 315, "origin": "ANC"})],
        "I could not call the tool.",
        [call("final_result_Flight", {"number": "AK123", "price": 315, "origin": "SFO"})],
    )
    agent.run_sync("Find me a flight from SFO to ANC on 2026-01-10")


def retries_exhausted(session: Session) -> None:
    for model in _models(session):
        session.play(*[[call("final_result", {"number": "XX", "price": -3})]] * 2)
        with contextlib.suppress(UnexpectedModelBehavior):
            Agent(model, output_type=Flight, retries=1).run_sync("Any flight to Graz?")


def agents_that_delegate(session: Session) -> None:
    (model, _) = _models(session)
    writer = Agent(
        model, output_type=list[str], system_prompt="Write as many jokes as asked, one a line."
    )
    chooser = Agent(
        model,
        system_prompt="Use the `joke_factory` to generate some jokes, then choose the best. "
        "You must return just a single joke.",
    )

    async def joke_factory(ctx: RunContext[None], count: int) -> list[str]:
        """Jokes by another agent."""
        made = await writer.run(f"Please generate {count} jokes.", usage=ctx.usage)
        jokes: list[str] = made.output
        return jokes

    chooser.tool(joke_factory)
    session.play(
        [call("joke_factory", {"count": 2})],
        [call("final_result", {"response": ["Why did the chicken?", "A horse walks into a bar."]})],
        "A horse walks into a bar.",
    )
    chooser.run_sync("Tell me a joke.")


def a_summary_of_the_history(session: Session) -> None:
    (model, _) = _models(session)
    session.play(
        "Sure: which rooms?",
        "Then white for the ceiling.",
        "The user renovates a flat: kitchen and bath in light grey, ceilings white.",
        "About six litres.",
    )
    agent = Agent(model, instructions="You advise on paint.")
    history = agent.run_sync("I want to paint my flat.").all_messages()
    history = agent.run_sync(
        "Kitchen and bath, light grey.", message_history=history
    ).all_messages()
    summarize = Agent(
        model,
        instructions="Summarize this conversation, omitting small talk and unrelated topics. "
        "Focus on the technical discussion and next steps.",
    )
    summary = summarize.run_sync(message_history=history)
    agent.run_sync("How much do I need?", message_history=summary.new_messages())


def questions_on_documents(session: Session) -> None:
    for model in _models(session):
        agent = Agent(
            model,
            instructions="Answer questions about the library. Use `retrieve` to look things up, "
            "and cite the section.",
        )

        def retrieve(search_query: str) -> str:
            """Retrieve documentation sections based on a search query.

            Args:
                search_query: The search query.
            """
            return (
                "# Installing\nURL:/install\n\nRun `pip install quill[all]`. Python 3.10 or newer "
                "is needed.\n\n# Configuring\nURL:/config\n\nSet `QUILL_TOKEN` or pass `token=`; "
                "never commit it. Defaults are read from `~/.config/quill.toml`."
            )

        agent.tool_plain(retrieve)
        session.play([call("retrieve", {"search_query": "configure token"})], "Set QUILL_TOKEN.")
        agent.run_sync("How do I pass my token to quill?")


if __name__ == "__main__":
    run(
        [
            chat,
            bank_support,
            tools_that_fail,
            outputs_of_each_kind,
            outputs_that_a_function_refuses,
            retries_exhausted,
            agents_that_delegate,
            a_summary_of_the_history,
            questions_on_documents,
        ]
    )
