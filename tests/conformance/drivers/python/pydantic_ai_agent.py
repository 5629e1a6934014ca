"""pydantic-ai: agents on chat completions, responses and messages."""

from __future__ import annotations

import asyncio
from typing import Any

import anthropic
import openai
from pydantic_ai import Agent
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider

from tests.conformance.drivers.python.loop import Call, Contact, Missing, error_body, run, send_mail


def model_of(call: Call) -> Any:
    options: dict[str, Any] = {
        "api_key": call.key,
        "max_retries": call.retries,
        "timeout": call.timeout,
    }
    if call.api == "messages":
        messages = anthropic.AsyncAnthropic(base_url=call.url, **options)
        return AnthropicModel(call.model, provider=AnthropicProvider(anthropic_client=messages))
    client = openai.AsyncOpenAI(base_url=f"{call.url}/v1", **options)
    kind = OpenAIResponsesModel if call.api == "responses" else OpenAIChatModel
    return kind(call.model, provider=OpenAIProvider(openai_client=client))


def text(call: Call) -> dict[str, Any]:
    return _told(_result(Agent(model_of(call)), call))


def tool(call: Call) -> dict[str, Any]:
    """The arguments that the agent has called the function with."""
    _require_choice(call)
    got: list[dict[str, Any]] = []
    _result(_mailing(call, got), call)
    return {"name": "send_mail", "arguments": got[0]}


def loop(call: Call) -> dict[str, Any]:
    _require_choice(call)
    return _told(_result(_mailing(call, []), call))


def structured(call: Call) -> dict[str, Any]:
    return {"object": _result(Agent(model_of(call), output_type=Contact), call)[0].model_dump()}


def hang_up(call: Call) -> dict[str, Any]:
    async def first() -> str:
        async with Agent(model_of(call)).run_stream(call.prompt) as result:
            async for piece in result.stream_text(delta=True, debounce_by=None):
                return piece
        return ""

    return {"text": asyncio.run(first())}


def details(error: BaseException) -> dict[str, Any]:
    told = {"status_code": error.status_code} if hasattr(error, "status_code") else {}
    return {**told, **error_body(getattr(error, "body", None))}


def _require_choice(call: Call) -> None:
    if call.forced:
        raise Missing("it leaves the choice of tools to the model")


def _mailing(call: Call, got: list[dict[str, Any]]) -> Agent[None, str]:
    agent = Agent(model_of(call))

    @agent.tool_plain(name="send_mail")
    def send(to: str, text: str, copies: int) -> str:
        """Send a mail."""
        got.append({"to": to, "text": text, "copies": copies})
        return send_mail(to, text, copies)

    return agent


def _result(agent: Agent[None, Any], call: Call) -> tuple[Any, Any]:
    """What came out, and the result that tells of it."""

    async def streamed() -> tuple[Any, Any]:
        async with agent.run_stream(call.prompt) as result:
            return await result.get_output(), result

    async def whole() -> tuple[Any, Any]:
        result = await agent.run(call.prompt)
        return result.output, result

    return asyncio.run(streamed() if call.stream else whole())


def _told(result: tuple[Any, Any]) -> dict[str, Any]:
    output, run_result = result
    response = run_result.response
    return {
        "text": output,
        "finish": response.finish_reason,
        "tokens": response.usage.input_tokens + response.usage.output_tokens,
    }


if __name__ == "__main__":
    actions = {
        "text": text,
        "tool": tool,
        "loop": loop,
        "object": structured,
        "hang_up": hang_up,
    }
    run(actions, details)
