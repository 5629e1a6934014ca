"""smolagents: agents that write code or call tools, their errors, plans and managed agents."""

from __future__ import annotations

import json
from typing import Any

from smolagents import CodeAgent, OpenAIModel, Tool, ToolCallingAgent
from smolagents.monitoring import LogLevel

from benchmarks.screens.frameworks.drivers.scenario import KEY, MODEL, Session, call, run


class Weather(Tool):  # type: ignore[misc]  # its base is unknown here
    name = "get_weather"
    description = "Get the current weather at a place."
    inputs = {
        "place": {"type": "string", "description": "The city, with its country"},
        "celsius": {"type": "boolean", "description": "Celsius or not", "nullable": True},
    }
    output_type = "string"

    def forward(self, place: str, celsius: bool | None = True) -> str:
        if "," not in place:
            raise ValueError(f"{place!r} has no country")
        return f"It is 9 degrees in {place}, with rain from the west."


class VisitPage(Tool):  # type: ignore[misc]
    name = "visit_webpage"
    description = "Visits a webpage at the given url and reads its content as markdown."
    inputs = {"url": {"type": "string", "description": "The url of the page"}}
    output_type = "string"

    def forward(self, url: str) -> str:
        return (
            "# Bridges of the river\n\n| bridge | year | length (m) |\n| --- | --- | --- |\n"
            "| Old bridge | 1877 | 353 |\n| Arch bridge | 1963 | 500 |\n\n[Contact](/contact)"
        )


def _model(session: Session) -> Any:
    return OpenAIModel(model_id=MODEL, api_base=session.url, api_key=KEY)


def _options(**more: Any) -> dict[str, Any]:
    return {"verbosity_level": LogLevel.OFF, "max_steps": 6, **more}


def _code(thought: str, code: str) -> str:
    return f"Thought: {thought}\n<code>\n{code}\n</code>"


def code_agent(session: Session) -> None:
    agent = CodeAgent([Weather()], _model(session), **_options())
    session.play(
        _code("I look at the weather.", 'print(get_weather(place="Oslo"))'),
        "I should name the country, let me try again.",
        _code("I need another module.", "import os\nprint(os.listdir())"),
        _code("I name the country.", 'w = get_weather(place="Oslo, Norway")\nprint(w)'),
        _code("I can answer now.", 'final_answer("Rain and 9 degrees in Oslo.")'),
        _code("A sum is easy.", "final_answer(sum(range(101)))"),
    )
    agent.run("What is the weather in Oslo?")
    agent.run("What is the sum of all numbers up to 100?", reset=False)


def code_agent_that_plans(session: Session) -> None:
    agent = CodeAgent(
        [VisitPage()],
        _model(session),
        additional_authorized_imports=["statistics"],
        **_options(planning_interval=2),
    )
    plan = "## 1. Facts survey\n### 1.1. Facts given in the task\nNone.\n## 2. Plan\n1. Visit it."
    session.play(
        plan,
        _code("I visit the page.", 'print(visit_webpage(url="https://bridges.example/"))'),
        _code("The mean.", "import statistics\nprint(statistics.mean([353, 500]))"),
        f"{plan}\n2. Answer.",
        _code("Done.", "final_answer(426.5)"),
    )
    agent.run("How long are the bridges on https://bridges.example/ on average?")


def structured_code_agent(session: Session) -> None:
    agent = CodeAgent(
        [Weather()], _model(session), use_structured_outputs_internally=True, **_options()
    )
    step = {"thought": "I ask for the weather.", "code": 'print(get_weather("Lima, Peru"))'}
    last = {"thought": "I know it.", "code": 'final_answer("Rain")'}
    session.play(json.dumps(step), json.dumps(last))
    agent.run("Do I need an umbrella in Lima?")


def tool_calling_agent(session: Session) -> None:
    agent = ToolCallingAgent([Weather(), VisitPage()], _model(session), **_options())
    session.play(
        [call("get_weather", {"place": "Turku"})],
        [call("get_weather", {"city": "Turku, Finland"})],
        [call("forecast", {"place": "Turku, Finland"})],
        [call("get_weather", {"place": "Turku, Finland", "celsius": "yes"})],
        [
            call("get_weather", {"place": "Turku, Finland"}),
            call("visit_webpage", {"url": "https://bridges.example/turku"}),
        ],
        [call("final_answer", {"answer": "Rain, and five bridges."})],
    )
    agent.run("How is the weather in Turku, and how many bridges does it have?")


def agent_out_of_steps(session: Session) -> None:
    agent = ToolCallingAgent([Weather()], _model(session), **_options(max_steps=2))
    session.play(
        *[[call("get_weather", {"place": "Nowhere"})]] * 2,
        "I could not find it out.",
    )
    agent.run("Is it cold in Nowhere?")


def managed_agents(session: Session) -> None:
    searcher = ToolCallingAgent(
        [VisitPage()],
        _model(session),
        name="web_search_agent",
        description="Runs web searches for you. Give it your query as an argument.",
        provide_run_summary=True,
        **_options(),
    )
    manager = CodeAgent(
        [], _model(session), managed_agents=[searcher], **_options(planning_interval=None)
    )
    session.play(
        _code(
            "I delegate.", 'print(web_search_agent(task="Find the longest bridge of the river"))'
        ),
        [call("visit_webpage", {"url": "https://bridges.example/"})],
        [
            call(
                "final_answer",
                {"answer": "### 1. Task outcome (short version):\nThe arch bridge, 500 m."},
            )
        ],
        _code("It is the arch bridge.", 'final_answer("The arch bridge")'),
    )
    manager.run("Which is the longest bridge of the river?")


def tasks_with_further_arguments(session: Session) -> None:
    agent = CodeAgent([], _model(session), instructions="Answer in French.", **_options())
    session.play(_code("I count the rows.", "final_answer(len(rows))"))
    agent.run(
        "How many rows does the table have?",
        additional_args={"rows": [{"city": "Nice", "bridges": 3}, {"city": "Metz", "bridges": 5}]},
    )


if __name__ == "__main__":
    run(
        [
            code_agent,
            code_agent_that_plans,
            structured_code_agent,
            tool_calling_agent,
            agent_out_of_steps,
            managed_agents,
            tasks_with_further_arguments,
        ]
    )
