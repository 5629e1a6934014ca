"""LlamaIndex: query engines of each kind of synthesis, chat engines, agents and hand-offs."""

from __future__ import annotations

from typing import Any

from llama_index.core import Document, MockEmbedding, Settings, SummaryIndex, VectorStoreIndex
from llama_index.core.agent.workflow import (
    AgentWorkflow,
    CodeActAgent,
    FunctionAgent,
    ReActAgent,
)
from llama_index.core.extractors import (
    KeywordExtractor,
    QuestionsAnsweredExtractor,
    SummaryExtractor,
    TitleExtractor,
)
from llama_index.core.llms import ChatMessage
from llama_index.core.memory import ChatSummaryMemoryBuffer
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.program import LLMTextCompletionProgram
from llama_index.core.prompts import PromptTemplate
from llama_index.core.query_engine import RouterQueryEngine, SubQuestionQueryEngine
from llama_index.core.selectors import LLMSingleSelector
from llama_index.core.tools import FunctionTool, QueryEngineTool
from llama_index.core.workflow import Context
from llama_index.llms.openai import OpenAI, OpenAIResponses
from pydantic import BaseModel

from benchmarks.screens.frameworks.drivers.scenario import KEY, MODEL, Session, call, run

_HANDBOOK = (
    "Employees have 30 days of paid leave a year. Leave is asked for in the portal, two weeks "
    "ahead.\n\nThe office in Porto opens at eight. Visitors sign in at the front desk and are "
    "met by their host.\n\nLaptops are replaced every four years. A broken one is reported to "
    "the service desk, which lends another within a day.\n\nTravel is booked through the agency; "
    "trains are preferred to planes below six hours."
)
_MINUTES = (
    "Present: four members. The roof of the club house leaks; two offers were read. It was "
    "decided to take the cheaper one. The summer party is on 4 July. Next meeting in May."
)


class Song(BaseModel):
    """A song."""

    title: str
    seconds: int


class Album(BaseModel):
    """An album of songs."""

    name: str
    artist: str
    songs: list[Song]


def _model(session: Session, kind: Any = OpenAI) -> Any:
    return kind(model=MODEL, api_base=session.url, api_key=KEY, max_retries=0)


def _documents() -> list[Document]:
    pages = _HANDBOOK.split("\n\n")
    documents = [
        Document(text=text, metadata={"file_name": "handbook.md", "page_label": str(page)})
        for page, text in enumerate(pages, 1)
    ]
    return [*documents, Document(text=_MINUTES, metadata={"file_name": "minutes.txt"})]


def _index(session: Session) -> VectorStoreIndex:
    Settings.llm = _model(session)
    Settings.embed_model = MockEmbedding(embed_dim=8)
    return VectorStoreIndex.from_documents(_documents())


def query_engines(session: Session) -> None:
    index = _index(session)
    for mode in ("compact", "refine", "tree_summarize", "simple_summarize", "accumulate"):
        session.play(*(f"Thirty days, by passage {number}." for number in range(4)))
        engine = index.as_query_engine(response_mode=mode, similarity_top_k=3)
        engine.query("How many days of leave do employees have?")
    session.play('{"name": "n", "artist": "a", "songs": []}')
    engine = SummaryIndex.from_documents(_documents()[-1:]).as_query_engine()
    engine.query("What was decided about the roof?")


def chat_engines(session: Session) -> None:
    index = _index(session)
    for mode in ("context", "condense_question", "condense_plus_context", "simple"):
        session.play(*(f"Answer {number} of the handbook." for number in range(8)))
        engine: Any = index.as_chat_engine(chat_mode=mode)
        engine.chat("Who do I call when my laptop breaks?")
        engine.chat("And how long does that take?")


def routers_and_sub_questions(session: Session) -> None:
    index = _index(session)
    tools = [
        QueryEngineTool.from_defaults(
            index.as_query_engine(), name="handbook", description="Rules for employees"
        ),
        QueryEngineTool.from_defaults(
            SummaryIndex.from_documents(_documents()[-1:]).as_query_engine(),
            name="minutes",
            description="Minutes of the sports club",
        ),
    ]
    session.play('[{"choice": 2, "reason": "It is about the club."}]', "On 4 July.")
    router = RouterQueryEngine(selector=LLMSingleSelector.from_defaults(), query_engine_tools=tools)
    router.query("When is the summer party?")
    questions = {"sub_question": "When does the office open?", "tool_name": "handbook"}
    session.play([call("SubQuestionList", {"items": [questions]})], "At eight.", "At eight.")
    try:
        engine = SubQuestionQueryEngine.from_defaults(query_engine_tools=tools, use_async=False)
    except ImportError:  # its generator for OpenAI is a package of its own
        from llama_index.core.question_gen import LLMQuestionGenerator

        session.play(
            '```json\n{"items": [{"sub_question": "When does the office open?", '
            '"tool_name": "handbook"}]}\n```',
            "At eight.",
            "At eight.",
        )
        engine = SubQuestionQueryEngine.from_defaults(
            query_engine_tools=tools,
            question_gen=LLMQuestionGenerator.from_defaults(),
            use_async=False,
        )
    engine.query("When does the office open, and when does the club meet?")


def extractors(session: Session) -> None:
    model = _model(session)
    nodes: Any = SentenceSplitter(chunk_size=64, chunk_overlap=0).get_nodes_from_documents(
        _documents()[:3]
    )
    for extractor in (
        TitleExtractor(llm=model, nodes=2),
        KeywordExtractor(llm=model, keywords=4),
        SummaryExtractor(llm=model, summaries=["prev", "self"]),
        QuestionsAnsweredExtractor(llm=model, questions=2),
    ):
        session.play(*(f"Leave, office, laptops ({number})" for number in range(8)))
        session.wait(extractor.aextract(nodes))


def structured_output(session: Session) -> None:
    album = '{"name": "Dusk", "artist": "The Moths", "songs": [{"title": "Lamp", "seconds": 184}]}'
    prompt = PromptTemplate("Invent an album in the style of {style}.")
    for kind in (OpenAI, OpenAIResponses):
        session.play(album)
        _model(session, kind).structured_predict(Album, prompt, style="folk")
    session.play(album)
    program = LLMTextCompletionProgram.from_defaults(
        output_cls=Album, prompt_template_str="Invent an album about {thing}.", llm=_model(session)
    )
    program(thing="trains")


def book_room(room: str, day: str, hours: float) -> str:
    """Book a meeting room."""
    if hours > 8:
        raise ValueError("A room can be booked for eight hours at most.")
    return f"Room {room} is booked on {day}."


def free_rooms(day: str) -> list[str]:
    """The rooms that are free on a day."""
    return ["Douro (8 seats)", "Minho (4 seats)"]


_TOOLS = [FunctionTool.from_defaults(book_room), FunctionTool.from_defaults(free_rooms)]


def _converse(session: Session, agent: Any, *texts: str) -> None:
    async def talk() -> None:
        context = Context(agent)
        for text in texts:
            await agent.run(text, ctx=context)

    session.wait(talk())


def function_agents(session: Session) -> None:
    for kind in (OpenAI, OpenAIResponses):
        agent = FunctionAgent(
            tools=_TOOLS,
            llm=_model(session, kind),
            system_prompt="You book rooms for the staff of the office in Porto.",
            streaming=False,
        )
        room = {"room": "Minho", "day": "Tuesday", "hours": 2}
        session.play(
            [call("free_rooms", {"day": "Tuesday"})],
            [call("book_room", room | {"hours": 12})],
            [call("book_room", {"room": "Minho"})],
            [call("cancel_room", {"room": "Minho"})],
            [call("book_room", room)],
            "Minho is booked on Tuesday.",
            "You are welcome.",
        )
        _converse(session, agent, "A room for four on Tuesday, two hours.", "Thanks!")


def react_agents(session: Session) -> None:
    agent = ReActAgent(tools=_TOOLS, llm=_model(session), streaming=False)
    session.play(
        "Thought: The current language of the user is: English. I need to use a tool to help me "
        'answer the question.\nAction: free_rooms\nAction Input: {"day": "Friday"}',
        "I should book Douro now.\nAction: book_room",
        'Thought: I book it.\nAction: book_room\nAction Input: {"room": "Douro", "day": "Friday", '
        '"hours": 9}',
        "Thought: I can answer without using any more tools. I'll use the user's language to "
        "answer\nAnswer: Nine hours are too long.",
    )
    _converse(session, agent, "Book the largest room on Friday, from nine to six.")


def code_agents(session: Session) -> None:
    def execute(code: str) -> str:
        return "Traceback (most recent call last): NameError: name 'pd' is not defined"

    agent = CodeActAgent(
        code_execute_fn=execute, tools=_TOOLS, llm=_model(session), streaming=False
    )
    session.play(
        "<execute>\nprint(pd.DataFrame([1, 2]).mean())\n</execute>",
        "<execute>\nprint(sum([1, 2]) / 2)\n</execute>",
        "The mean is 1.5.",
    )
    _converse(session, agent, "What is the mean of 1 and 2?")


def agents_that_hand_off(session: Session) -> None:
    options: dict[str, Any] = {"llm": _model(session), "streaming": False}
    reception = FunctionAgent(
        name="Reception",
        description="Welcomes callers and finds out what they need.",
        system_prompt="You are the reception. Hand off to Rooms for everything about rooms.",
        tools=[],
        can_handoff_to=["Rooms"],
        **options,
    )
    rooms = FunctionAgent(
        name="Rooms",
        description="Knows which rooms are free, and books them.",
        system_prompt="You book rooms. Hand back to Reception when you are done.",
        tools=_TOOLS,
        can_handoff_to=["Reception"],
        **options,
    )
    workflow = AgentWorkflow(
        agents=[reception, rooms], root_agent="Reception", initial_state={"bookings": []}
    )
    session.play(
        [call("handoff", {"to_agent": "Rooms", "reason": "The caller wants a room."})],
        [call("handoff", {"to_agent": "Kitchen", "reason": "Coffee."})],
        [call("free_rooms", {"day": "Monday"})],
        "Douro and Minho are free.",
    )
    _converse(session, workflow, "Which rooms are free on Monday?")


def a_memory_that_summarizes(session: Session) -> None:
    memory = ChatSummaryMemoryBuffer.from_defaults(llm=_model(session), token_limit=60)
    session.play("The user plans a trip to Japan in spring.")
    for text in (
        "I plan two weeks in Japan in spring, Tokyo and Kyoto at least.",
        "Lovely. Late March to early April has the blossoms; book trains early.",
        "My daughter wants to see deer.",
        "Then Nara is for you, 45 minutes from Kyoto.",
    ):
        memory.put(ChatMessage(role="user", content=text))
        memory.put(ChatMessage(role="assistant", content="Noted."))
    history = memory.get()
    _model(session).chat([*history, ChatMessage(role="user", content="What should I book first?")])


if __name__ == "__main__":
    run(
        [
            query_engines,
            chat_engines,
            routers_and_sub_questions,
            extractors,
            structured_output,
            function_agents,
            react_agents,
            code_agents,
            agents_that_hand_off,
            a_memory_that_summarizes,
        ]
    )
