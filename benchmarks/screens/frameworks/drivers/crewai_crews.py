"""CrewAI: crews in sequence and under a manager, delegation, guardrails, typed outputs, plans."""

from __future__ import annotations

from typing import Any

from crewai import LLM, Agent, Crew, Process, Task
from crewai.tools import BaseTool
from pydantic import BaseModel, Field

from benchmarks.screens.frameworks.drivers.scenario import KEY, MODEL, Session, call, run


class SearchArguments(BaseModel):
    query: str = Field(description="What to search for")
    pages: int = Field(default=1, description="How many pages of results", le=3)


class Search(BaseTool):  # type: ignore[misc]  # its base is unknown here
    name: str = "Search the catalogue"
    description: str = "Search the catalogue of the museum for works and makers."
    args_schema: type[BaseModel] = SearchArguments

    def _run(self, query: str, pages: int = 1) -> str:
        if query == "all":
            raise ValueError("the catalogue has 80,000 entries; give a narrower query")
        return '[{"work": "Tide clock", "maker": "J. Harrow", "year": 1764, "room": 12}]'


class Exhibit(BaseModel):
    """An exhibit with a text for its label."""

    title: str
    label: str = Field(description="At most 60 words")
    room: int


def _model(session: Session) -> Any:
    return LLM(model=f"openai/{MODEL}", base_url=session.url, api_key=KEY)


def _curator(session: Session, **more: Any) -> Any:
    return Agent(
        role="Curator of clocks",
        goal="Find works that tell the history of time on ships",
        backstory="You have looked after the museum's clocks for twenty years, and know each one.",
        tools=[Search()],
        llm=_model(session),
        **more,
    )


def _writer(session: Session, **more: Any) -> Any:
    return Agent(
        role="Writer of labels",
        goal="Write short labels that children like to read",
        backstory="A former teacher. You hate jargon.",
        llm=_model(session),
        **more,
    )


def _find(agent: Any) -> Any:
    return Task(
        description="Find one clock for the exhibition about {topic}.",
        expected_output="The name of the work, its maker and its room.",
        agent=agent,
    )


def _run(crew: Any, **inputs: str) -> None:
    crew.kickoff(inputs=inputs or None)


def _final(text: str) -> str:
    return f"Thought: I now can give a great answer\nFinal Answer: {text}"


_ACTION = "Thought: I should search.\nAction: Search the catalogue\nAction Input: "


def a_crew_in_sequence(session: Session) -> None:
    curator, writer = _curator(session), _writer(session)
    find = _find(curator)
    label = Task(
        description="Write the label of the clock that was found.",
        expected_output="A label of at most 60 words.",
        agent=writer,
        context=[find],
    )
    session.play(
        _ACTION + '{"query": "tides"}',
        _final("Tide clock by J. Harrow, room 12."),
        _final("How did sailors know when the sea would rise? This clock told them."),
    )
    _run(Crew(agents=[curator, writer], tasks=[find, label]), topic="the sea")


def tools_that_fail(session: Session) -> None:
    curator = _curator(session)
    session.play(
        _ACTION + '{"query": "all"}',
        _ACTION + "tides",
        "Thought: I should look elsewhere.\nAction: Search the web\nAction Input: {}",
        _ACTION + '{"query": "tides", "pages": 9}',
        "I am not sure what to do.",
        _ACTION + '{"query": "tides"}',
        _ACTION + '{"query": "tides"}',
        _final("Tide clock by J. Harrow, room 12."),
    )
    _run(Crew(agents=[curator], tasks=[_find(curator)]), topic="tides")


def typed_outputs(session: Session) -> None:
    writer = _writer(session)
    for option in ("output_pydantic", "output_json"):
        task = Task(
            description="Describe the tide clock for the exhibition.",
            expected_output="An exhibit with title, label and room.",
            agent=writer,
            **{option: Exhibit},
        )
        exhibit = '{"title": "Tide clock", "label": "It knew the sea.", "room": 12}'
        session.play(_final("The tide clock, room twelve"), exhibit, [call("Exhibit", exhibit)])
        _run(Crew(agents=[writer], tasks=[task]))


def guardrails(session: Session) -> None:
    writer = _writer(session)

    # a function with annotations in strings would be refused
    is_short: Any = lambda output: (  # noqa: E731
        len(output.raw.split()) <= 8,
        f"The label {output.raw!r} has more than 8 words.",
    )
    for guardrail in (is_short, "The label must not contain any number."):
        task = Task(
            description="Write a label for the astronomical clock.",
            expected_output="A label of eight words.",
            agent=writer,
            guardrail=guardrail,
            guardrail_max_retries=2,
        )
        session.play(
            _final("This clock from 1790 shows the moon, the sun and five planets."),
            '{"valid": false, "feedback": "It has the number 1790."}'
            if isinstance(guardrail, str)
            else _final("It shows the moon and the sun."),
            _final("It shows the moon and the sun."),
            '{"valid": true, "feedback": null}',
        )
        _run(Crew(agents=[writer], tasks=[task]))


def a_crew_that_delegates(session: Session) -> None:
    curator = _curator(session, allow_delegation=True)
    writer = _writer(session)
    session.play(
        "Thought: The writer knows better.\nAction: Ask question to coworker\nAction Input: "
        '{"question": "Which clock do children like?", "context": "The exhibition is about the '
        'sea.", "coworker": "Writer of labels"}',
        _final("The one with the ship that moves."),
        "Thought: He shall write.\nAction: Delegate work to coworker\nAction Input: "
        '{"task": "Write a label", "context": "The clock has a ship.", "coworker": "Painter"}',
        _final("The ship clock, room 3."),
    )
    _run(Crew(agents=[curator, writer], tasks=[_find(curator)]), topic="ships")


def a_crew_under_a_manager(session: Session) -> None:
    curator, writer = _curator(session), _writer(session)
    task = Task(
        description="Prepare an exhibit about clocks on ships.",
        expected_output="Title, label and room.",
    )
    session.play(
        "Thought: The curator finds it.\nAction: Delegate work to coworker\nAction Input: "
        '{"task": "Find a clock", "context": "For ships.", "coworker": "Curator of clocks"}',
        _ACTION + '{"query": "ship"}',
        _final("Tide clock, room 12."),
        _final("Tide clock: it knew the sea. Room 12."),
    )
    crew = Crew(
        agents=[curator, writer],
        tasks=[task],
        process=Process.hierarchical,
        manager_llm=_model(session),
    )
    _run(crew)


def a_crew_that_plans(session: Session) -> None:
    curator = _curator(session)
    plan = {"task": "Find one clock", "plan": "1. Search for tides. 2. Choose the oldest."}
    session.play(
        str({"list_of_plans_per_task": [plan]}).replace("'", '"'),
        _final("Tide clock, room 12."),
    )
    crew = Crew(
        agents=[curator], tasks=[_find(curator)], planning=True, planning_llm=_model(session)
    )
    _run(crew, topic="tides")


def an_agent_alone(session: Session) -> None:
    session.play(_ACTION + '{"query": "moon"}', _final("The tide clock."))
    _curator(session, reasoning=False).kickoff("Which clock shows the moon?")


def an_agent_that_reflects(session: Session) -> None:
    curator = _curator(session, reasoning=True, max_reasoning_attempts=2)
    ready = {"plan": "Search for tides.", "ready": True}
    session.play(
        "I search for tides, then choose.\n\nNOT READY: I do not know the room.",
        [call("create_reasoning_plan", ready)],
        "READY: I am ready to execute the task.",
        _final("Tide clock, room 12."),
    )
    _run(Crew(agents=[curator], tasks=[_find(curator)]), topic="tides")


if __name__ == "__main__":
    run(
        [
            a_crew_in_sequence,
            tools_that_fail,
            typed_outputs,
            guardrails,
            a_crew_that_delegates,
            a_crew_under_a_manager,
            a_crew_that_plans,
            an_agent_alone,
            an_agent_that_reflects,
        ]
    )
