"""The share of answers that attempt to call a tool which parse as calls.

    python -m benchmarks.tool_calls [--model qwen-0.5b] [--dtype float32] [--limit 100]
                                    [--forced] [--json]

A hundred questions (`prompts.toml`), each with three tools in the model's own chat template, one of
which can answer it; greedy, in batches of 8. An answer attempts a call where its text has a tag of
calls, or an object with a name and arguments. It parses where all of it that is such an attempt
comes back as whole calls. `--forced` names the tool to call, as `tool_choice` does.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import sys
import time
import tomllib
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from guard.config.schema import Config
from server.services.build import build_services
from server.services.interface import SamplingParams, TextRowRequest, TextService
from server.services.text_jobs import TextJob, collect
from server.services.tools.offered import OfferedTools
from server.services.tools.row_calls import RowCalls

BATCH = 8
OFFERED = 3
"""Tools of a question."""
_ATTEMPT = re.compile(r'<tool_call>|<tools>|"name"\s*:.*"(arguments|parameters)"\s*:', re.DOTALL)


@dataclass(frozen=True)
class Answer:
    """What came back for a question: the text as the model wrote it, and what it was read as."""

    question: str
    tool: str
    written: str
    text: str
    calls: list[tuple[str, str]]
    reason: str

    @property
    def attempts(self) -> bool:
        return _ATTEMPT.search(self.written) is not None

    @property
    def parses(self) -> bool:
        return bool(self.calls) and _ATTEMPT.search(self.text) is None


def main() -> None:
    """Measure, and print a summary, or JSON with all answers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="qwen-0.5b")
    parser.add_argument("--prompts", type=Path, default=Path(__file__).parent / "prompts.toml")
    parser.add_argument("--limit", type=int, default=100)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--forced", action="store_true")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    tools = tomllib.loads(arguments.prompts.read_text())["tools"]
    model = {"name": "model", "source": arguments.model, "dtype": arguments.dtype}
    config = Config.model_validate({"models": [model]})
    services = build_services(config, lambda request, verdict: None)
    service: Any = services["model"]
    began = time.monotonic()
    try:
        answers = asyncio.run(
            ask_all(service, tools, arguments.limit, arguments.tokens, forced=arguments.forced)
        )
    finally:
        service.close()
    report = summary(answers) | {"seconds": round(time.monotonic() - began, 1)}
    if arguments.json:
        print(json.dumps(report | {"answers": [asdict(a) for a in answers]}, indent=2))
    else:
        print(json.dumps(report, indent=2))


async def ask_all(
    service: TextService, tools: list[dict[str, Any]], limit: int, tokens: int, *, forced: bool
) -> list[Answer]:
    """The answers to the first questions of all tools, up to `limit`."""
    asked = [
        (question, at)
        for number in range(max(len(tool["questions"]) for tool in tools))
        for at, tool in enumerate(tools)
        for question in tool["questions"][number : number + 1]
    ][:limit]
    answers: list[Answer] = []
    for first in range(0, len(asked), BATCH):
        jobs = [
            ask(service, question, offered(tools, at, forced=forced), tools[at]["name"], tokens)
            for question, at in asked[first : first + BATCH]
        ]
        answers += await asyncio.gather(*jobs)
        parsed = sum(answer.parses for answer in answers)
        attempts = sum(answer.attempts for answer in answers)
        print(f"{len(answers)} questions: {parsed} of {attempts} attempts parse", file=sys.stderr)
    return answers


async def ask(
    service: TextService, question: str, tools: OfferedTools, tool: str, tokens: int
) -> Answer:
    """The answer to one question, as the server reads it."""
    form = service.info.tools
    if form is None:
        raise SystemExit("the chat template of this model knows no tools")
    prompt = service.encode_chat([{"role": "user", "content": question}], tools)
    request = TextRowRequest(
        question, prompt, "none", SamplingParams(tokens, temperature=0), shown=form.shown
    )
    deadline = asyncio.get_running_loop().time() + 3600
    written: list[str] = []

    class Reading(RowCalls):
        def read(self, event: Any) -> Any:
            written.append(getattr(event, "text", ""))
            return super().read(event)

    job = TextJob(service, [request], 1, deadline, lambda: Reading(form.family, tools))
    (row,) = await collect(job)
    return Answer(
        question,
        tool,
        tools.beginning(form.family) + "".join(written),
        row.text,
        [(call.name, call.arguments) for call in row.calls],
        row.finished.reason,
    )


def offered(tools: list[dict[str, Any]], at: int, *, forced: bool) -> OfferedTools:
    """The tool at this place and those that follow it."""
    chosen = [tools[(at + step) % len(tools)] for step in range(OFFERED)]
    definitions = tuple(
        {
            "type": "function",
            "function": {
                "name": tool["name"],
                "description": tool["description"],
                "parameters": {
                    "type": "object",
                    "properties": {
                        name: {"type": kind} for name, kind in tool["parameters"].items()
                    },
                    "required": [*tool["parameters"]],
                },
            },
        }
        for tool in chosen
    )
    if forced:
        return OfferedTools(definitions, frozenset({tools[at]["name"]}), "required")
    return OfferedTools(definitions, frozenset(tool["name"] for tool in chosen))


def summary(answers: list[Answer]) -> dict[str, Any]:
    """Counts and shares over all answers."""
    attempts = [answer for answer in answers if answer.attempts]
    parsed = [answer for answer in attempts if answer.parses]
    return {
        "questions": len(answers),
        "attempts": len(attempts),
        "parsed": len(parsed),
        "share": round(len(parsed) / len(attempts), 3) if attempts else None,
        "of the right tool": sum(answer.calls[0][0] == answer.tool for answer in parsed),
        "reasons": Counter(answer.reason for answer in answers),
        "not parsed": [answer.written for answer in attempts if not answer.parses],
    }


if __name__ == "__main__":
    main()
