"""OpenAI's Agents SDK: tools, hand-offs, guardrails, agents as tools, sessions, typed outputs."""

from __future__ import annotations

import contextlib
from typing import Any

import agents
import openai
from agents.exceptions import AgentsException
from agents.extensions.handoff_filters import remove_all_tools
from agents.extensions.handoff_prompt import prompt_with_handoff_instructions
from pydantic import BaseModel

from benchmarks.screens.frameworks.drivers.scenario import KEY, MODEL, Session, call, run


class Booking(BaseModel):
    """A seat that was booked."""

    confirmation: str
    seat: str


class IsHomework(BaseModel):
    is_homework: bool
    reasoning: str


class Outline(BaseModel):
    good_quality: bool
    sections: list[str]


class HandOffReason(BaseModel):
    reason: str


def _models(session: Session) -> list[Any]:
    agents.set_tracing_disabled(True)
    client = openai.AsyncOpenAI(base_url=session.url, api_key=KEY, max_retries=0)
    kinds = (agents.OpenAIChatCompletionsModel, agents.OpenAIResponsesModel)
    return [kind(model=MODEL, openai_client=client) for kind in kinds]


def _ask(session: Session, agent: Any, text: Any, memory: Any = None) -> Any:
    return session.wait(agents.Runner.run(agent, text, session=memory))


def faq_lookup(question: str) -> str:
    """Look up frequently asked questions.

    Args:
        question: What the passenger wants to know.
    """
    return "One bag of at most 50 pounds and 22 x 14 x 9 inches is allowed on the plane."


def update_seat(confirmation: str, seat: str) -> str:
    """Update the seat for a given confirmation number.

    Args:
        confirmation: The confirmation number of the flight.
        seat: The new seat.
    """
    if not confirmation.isalnum():
        raise ValueError("a confirmation number has six letters and digits")
    return f"Updated seat to {seat} for confirmation number {confirmation}"


def _airline(model: Any) -> Any:
    faq = agents.Agent(
        name="FAQ Agent",
        handoff_description="A helpful agent that can answer questions about the airline.",
        instructions=prompt_with_handoff_instructions(
            "You are an FAQ agent. Use the lookup tool to answer the question, do not rely on "
            "your own knowledge. If you cannot answer, transfer back to the triage agent."
        ),
        tools=[agents.function_tool(faq_lookup)],
        model=model,
    )
    seats = agents.Agent(
        name="Seat Booking Agent",
        handoff_description="A helpful agent that can update a seat on a flight.",
        instructions=prompt_with_handoff_instructions(
            "You are a seat booking agent. Ask for the confirmation number, then for the desired "
            "seat, then use the update tool. For anything else transfer back."
        ),
        tools=[agents.function_tool(update_seat)],
        model=model,
    )

    async def noted(context: Any, given: HandOffReason) -> None:
        return None

    triage = agents.Agent(
        name="Triage Agent",
        instructions=prompt_with_handoff_instructions(
            "You are a helpful triaging agent. Delegate questions to the other agents."
        ),
        handoffs=[
            faq,
            agents.handoff(
                seats, on_handoff=noted, input_type=HandOffReason, input_filter=remove_all_tools
            ),
        ],
        model=model,
    )
    faq.handoffs.append(triage)
    seats.handoffs.append(triage)
    return triage


def chat(session: Session) -> None:
    for model in _models(session):
        session.play("Code calls itself,\nthen returns.", "Base case first.")
        agent = agents.Agent(name="Poet", instructions="You only respond in haikus.", model=model)
        result = _ask(session, agent, "Tell me about recursion in programming.")
        _ask(session, agent, [*result.to_input_list(), {"role": "user", "content": "And its end?"}])


def airline_with_hand_offs(session: Session) -> None:
    for model in _models(session):
        session.play(
            [call("transfer_to_faq_agent", {})],
            [call("faq_lookup", {"question": "bags"})],
            "One bag, fifty pounds.",
        )
        result = _ask(session, _airline(model), "How many bags may I take on board?")
        session.play(
            [call("transfer_to_triage_agent", {})],
            [call("transfer_to_seat_booking_agent", {"reason": "The passenger wants a window."})],
            [call("update_seat", {"confirmation": "??", "seat": "12A"})],
            [call("update_seat", {"confirmation": "LL0EZ6", "seat": "12A"})],
            "You sit at the window now, in 12A.",
        )
        turns = result.to_input_list()
        text = "I would like a window seat, my confirmation number is LL0EZ6"
        _ask(session, result.last_agent, [*turns, {"role": "user", "content": text}])


def tools_that_fail(session: Session) -> None:
    for model in _models(session):

        def convert(amount: float, source: str, target: str) -> str:
            """Convert an amount of money."""
            raise TimeoutError("the exchange's server did not answer within 10 s")

        agent = agents.Agent(name="Money", tools=[agents.function_tool(convert)], model=model)
        money = {"amount": 20, "source": "EUR", "target": "SEK"}
        session.play(
            [call("convert", money), call("convert", money | {"amount": "twenty"})],
            [call("convert", money)],
            "The exchange does not answer.",
        )
        _ask(session, agent, "How many Swedish crowns are 20 euros?")
        session.play([call("unknown_tool", {})])
        with contextlib.suppress(AgentsException):
            _ask(session, agent, "And in Norwegian ones?")


def guardrails(session: Session) -> None:
    for model in _models(session):
        check = agents.Agent(
            name="Guardrail check",
            instructions="Check if the user is asking you to do their math homework.",
            output_type=IsHomework,
            model=model,
        )

        async def homework(context: Any, agent: Any, text: Any, check: Any = check) -> Any:
            result = await agents.Runner.run(check, text, context=context.context)
            found = result.final_output_as(IsHomework)
            return agents.GuardrailFunctionOutput(
                output_info=found, tripwire_triggered=found.is_homework
            )

        support = agents.Agent(
            name="Customer support agent",
            instructions="You are a customer support agent. You help customers with questions.",
            input_guardrails=[agents.InputGuardrail(guardrail_function=homework)],
            model=model,
        )
        verdict = '{"is_homework": false, "reasoning": "It is about the shop."}'
        for text in ("What are your opening hours?", "Can you help me solve 2x + 5 = 11?"):
            session.play(verdict, verdict)
            with contextlib.suppress(AgentsException):
                _ask(session, support, text)


def agents_as_tools(session: Session) -> None:
    for model in _models(session):
        translators = [
            agents.Agent(
                name=f"{language}_agent",
                instructions=f"You translate the user's message to {language}",
                model=model,
            ).as_tool(f"translate_to_{language.lower()}", f"Translate to {language}")
            for language in ("Spanish", "Italian")
        ]
        orchestrator = agents.Agent(
            name="orchestrator_agent",
            instructions="You are a translation agent. You use the tools given to you to "
            "translate. If asked for multiple translations, you call the relevant tools in order. "
            "You never translate on your own, you always use the provided tools.",
            tools=translators,
            model=model,
        )
        session.play(
            [call("translate_to_spanish", {"input": "Hello, friend"})],
            "Hola, amigo",
            [call("translate_to_italian", {"input": "Hello, friend"})],
            "Ciao, amico",
            "Spanish: Hola, amigo. Italian: Ciao, amico.",
        )
        _ask(session, orchestrator, "Say 'Hello, friend' in Spanish and Italian.")


def typed_outputs(session: Session) -> None:
    for model in _models(session):
        agent = agents.Agent(
            name="outline_checker_agent",
            instructions="Read the given story outline, and judge the quality.",
            output_type=Outline,
            model=model,
        )
        session.play('{"good_quality": true, "sections": ["The lighthouse", "The storm"]}')
        _ask(
            session,
            agent,
            "A lighthouse keeper finds a bottle. A storm comes. He reads the letter.",
        )
        session.play('{"good_quality": "yes"')
        with contextlib.suppress(AgentsException):
            _ask(session, agent, "A robot learns to paint.")
        seats = agents.Agent(
            name="Seats",
            tools=[agents.function_tool(update_seat)],
            output_type=Booking,
            model=model,
        )
        session.play(
            [call("update_seat", {"confirmation": "AB12CD", "seat": "3C"})],
            '{"confirmation": "AB12CD", "seat": "3C"}',
        )
        _ask(session, seats, "Put AB12CD on the aisle in row 3.")


def sessions(session: Session) -> None:
    for model in _models(session):
        memory = agents.SQLiteSession("traveller")
        agent = agents.Agent(name="Guide", instructions="Reply very concisely.", model=model)
        session.play("San Francisco.", "California.", "39 million.")
        for text in (
            "What city is the Golden Gate Bridge in?",
            "What state is it in?",
            "What's the population of that state?",
        ):
            _ask(session, agent, text, memory)


if __name__ == "__main__":
    run(
        [
            chat,
            airline_with_hand_offs,
            tools_that_fail,
            guardrails,
            agents_as_tools,
            typed_outputs,
            sessions,
        ]
    )
