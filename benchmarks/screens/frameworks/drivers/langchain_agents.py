"""LangChain and LangGraph: agents, their middleware, structured output, retrieval, hand-offs."""

from __future__ import annotations

from typing import Any

from langchain.agents import create_agent
from langchain.agents.middleware import (
    LLMToolSelectorMiddleware,
    SummarizationMiddleware,
    TodoListMiddleware,
)
from langchain.agents.structured_output import ProviderStrategy, ToolStrategy
from langchain_core.documents import Document
from langchain_core.exceptions import OutputParserException
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.output_parsers import (
    CommaSeparatedListOutputParser,
    PydanticOutputParser,
    StrOutputParser,
)
from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder
from langchain_core.tools import StructuredTool, ToolException
from langchain_openai import ChatOpenAI
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, MessagesState, StateGraph
from pydantic import BaseModel, Field

from benchmarks.screens.frameworks.drivers.scenario import KEY, MODEL, Session, call, run


class Film(BaseModel):
    """A film with its rating."""

    title: str = Field(description="The title of the film")
    year: int = Field(description="The year it was released")
    rating: float = Field(description="Out of 10", ge=0, le=10)


class Grade(BaseModel):
    """Grade documents using a binary score for relevance check."""

    binary_score: str = Field(description="Relevance score: 'yes' if relevant, or 'no' if not")


DOCUMENTS = [
    Document("Task decomposition can be done by simple prompting.", metadata={"source": "a.md"}),
    Document("A long-term memory is kept in a vector store.", metadata={"source": "b.md"}),
]


def _chat_model(session: Session, *, responses: bool = False) -> Any:
    return ChatOpenAI(
        model=MODEL,
        base_url=session.url,
        api_key=KEY,
        max_retries=0,
        use_responses_api=responses,
    )


def _tool(function: Any, **options: Any) -> Any:
    return StructuredTool.from_function(function, **options)


def stock_price(symbol: str, currency: str = "USD") -> str:
    """Get the latest price of a share.

    Args:
        symbol: The ticker symbol, such as MSFT.
        currency: In which to give it.
    """
    if not symbol.isupper():
        raise ToolException(f"Unknown symbol {symbol}; use the ticker in capital letters.")
    return f"{symbol}: 412.30 {currency} (delayed by 15 minutes)"


def divide(a: float, b: float) -> float:
    """Divide a by b."""
    return a / b


def send_report(to: str, subject: str, body: str) -> str:
    """Send a report by mail."""
    return f"Mail to {to} is queued (id 7781)."


def _turn(agent: Any, text: str, thread: str = "1") -> Any:
    options = {"configurable": {"thread_id": thread}}
    return agent.invoke({"messages": [HumanMessage(text)]}, options)


def chains(session: Session) -> None:
    model = _chat_model(session)
    session.play("Ich lerne gern.", "Katzen, Hunde", "A short summary.")
    translate = ChatPromptTemplate.from_messages(
        [
            ("system", "You are a helpful assistant that translates {source} to {target}."),
            ("human", "{text}"),
        ]
    )
    chain = translate | model | StrOutputParser()
    chain.invoke({"source": "English", "target": "German", "text": "I love learning."})
    parser = CommaSeparatedListOutputParser()
    chain = ChatPromptTemplate.from_template("List five {what}.\n{format}") | model | parser
    chain.invoke({"what": "pets", "format": parser.get_format_instructions()})
    summarize = ChatPromptTemplate.from_template(
        "Write a concise summary of the following:\n\n{context}"
    )
    joined = "\n\n".join(document.page_content for document in DOCUMENTS)
    (summarize | model | StrOutputParser()).invoke({"context": joined})


def retrieval(session: Session) -> None:
    model = _chat_model(session)
    session.play("How is task decomposition done?", "By prompting.", [call("Grade", _YES)])
    turns = [HumanMessage("What is task decomposition?"), AIMessage("Splitting a task.")]
    contextualize = ChatPromptTemplate.from_messages(
        [
            (
                "system",
                "Given a chat history and the latest user question which might reference context "
                "in the chat history, formulate a standalone question which can be understood "
                "without the chat history. Do NOT answer the question, just reformulate it if "
                "needed and otherwise return it as is.",
            ),
            MessagesPlaceholder("chat_history"),
            ("human", "{input}"),
        ]
    )
    (contextualize | model).invoke({"chat_history": turns, "input": "How is it done?"})
    answer = ChatPromptTemplate.from_messages(
        [
            (
                "system",
                "You are an assistant for question-answering tasks. Use the following pieces of "
                "retrieved context to answer the question. If you don't know the answer, say that "
                "you don't know. Use three sentences maximum and keep the answer concise.\n\n"
                "{context}",
            ),
            MessagesPlaceholder("chat_history"),
            ("human", "{input}"),
        ]
    )
    context = "\n\n".join(document.page_content for document in DOCUMENTS)
    (answer | model).invoke({"context": context, "chat_history": turns, "input": "How is it done?"})
    grader = model.with_structured_output(Grade, method="function_calling")
    grader.invoke(
        "You are a grader assessing relevance of a retrieved document to a user question.\n"
        f"Here is the retrieved document:\n\n{context}\n\nHere is the user question: How is it "
        "done?\nIf the document contains keywords or semantic meaning related to the question, "
        "grade it as relevant. Give a binary score 'yes' or 'no'."
    )


_YES = {"binary_score": "yes"}


def structured_output(session: Session) -> None:
    film = '{"title": "Inception", "year": 2010, "rating": 8.8}'
    for responses in (False, True):
        model = _chat_model(session, responses=responses)
        session.play(film, [call("Film", film)])
        model.with_structured_output(Film).invoke("Give details about the film Inception")
        model.with_structured_output(Film, method="function_calling").invoke("And The Matrix?")
    parser = PydanticOutputParser(pydantic_object=Film)
    prompt = ChatPromptTemplate.from_messages(
        [
            ("system", "Answer the user query. Wrap the output in `json` tags\n{format}"),
            ("human", "{query}"),
        ]
    ).partial(format=parser.get_format_instructions())
    session.play("It is a good film.", film)
    try:
        (prompt | _chat_model(session) | parser).invoke({"query": "What about Alien?"})
    except OutputParserException as error:
        fix = ChatPromptTemplate.from_template(
            "Instructions:\n--------------\n{instructions}\n--------------\nCompletion:\n"
            "--------------\n{completion}\n--------------\n\nAbove, the Completion did not "
            "satisfy the constraints given in the Instructions.\nError:\n--------------\n{error}\n"
            "--------------\n\nPlease try again."
        )
        values = {"instructions": parser.get_format_instructions(), "error": str(error)}
        (fix | _chat_model(session) | parser).invoke({**values, "completion": error.llm_output})


def agent_with_tools(session: Session) -> None:
    for responses in (False, True):
        tools = [_tool(stock_price, handle_tool_error=True), _tool(divide), _tool(send_report)]
        agent = create_agent(
            _chat_model(session, responses=responses),
            tools,
            system_prompt="You are an assistant of a small investment club.",
            checkpointer=InMemorySaver(),
        )
        session.play(
            [call("stock_price", {"symbol": "msft"})],
            [call("stock_price", {"symbol": "MSFT"}), call("stock_price", {"symbol": "SAP"})],
            [call("divide", {"a": 10000, "b": "twelve"})],
            [call("market_news", {"topic": "software"})],
            [call("divide", {"a": 10000, "b": 412.3})],
            "You could buy 24 shares.",
            [
                call(
                    "send_report", {"to": "treasurer@club.example", "subject": "MSFT", "body": "24"}
                )
            ],
            "Done, the treasurer has it.",
        )
        _turn(agent, "How many Microsoft shares do I get for 10,000 dollars?")
        _turn(agent, "Mail that to the treasurer, treasurer@club.example")


def agent_with_a_response_format(session: Session) -> None:
    bad, good = {"title": "Dune", "year": 2021, "rating": 80}, {"title": "Dune", "year": 2021}
    for strategy in (ToolStrategy(Film), ProviderStrategy(Film)):
        agent = create_agent(_chat_model(session), [_tool(divide)], response_format=strategy)
        if isinstance(strategy, ToolStrategy):
            session.play(
                [call("Film", bad)],
                [call("Film", good), call("Film", good)],
                [call("Film", {**good, "rating": 8})],
            )
        else:
            session.play('{"title": "Dune", "year": 2021, "rating": 8}')
        agent.invoke({"messages": [HumanMessage("Rate the newest film of Dune.")]})


def agent_that_plans(session: Session) -> None:
    agent = create_agent(
        _chat_model(session), [_tool(send_report)], middleware=[TodoListMiddleware()]
    )
    todos = [{"content": "Collect the figures", "status": "in_progress"}]
    todos += [{"content": "Write the report", "status": "pending"}]
    session.play([call("write_todos", {"todos": todos})], "The report is written.")
    agent.invoke({"messages": [HumanMessage("Prepare the report on the third quarter.")]})


def agent_with_a_memory(session: Session) -> None:
    summarize = SummarizationMiddleware(
        _chat_model(session), trigger=("messages", 4), keep=("messages", 2)
    )
    agent = create_agent(
        _chat_model(session),
        [_tool(divide)],
        middleware=[summarize],
        checkpointer=InMemorySaver(),
    )
    session.play(*(f"Fine, noted as number {number}." for number in range(12)))
    for text in (
        "Hi, I am Bob and I keep bees.",
        "I have four hives, two of them are new.",
        "The new ones are weak. What should I feed them in autumn?",
        "And when do I stop?",
        "What was my name again?",
    ):
        _turn(agent, text)


def agent_that_selects_tools(session: Session) -> None:
    tools = [_tool(stock_price), _tool(divide), _tool(send_report)]
    select = LLMToolSelectorMiddleware(model=_chat_model(session), max_tools=1)
    agent = create_agent(_chat_model(session), tools, middleware=[select])
    chosen = '{"tools": ["divide"]}'
    session.play(chosen, [call("divide", {"a": 1, "b": 3})], chosen, "A third.")
    agent.invoke({"messages": [HumanMessage("What is one by three?")]})


def supervisor(session: Session) -> None:
    model = _chat_model(session)
    session.play("researcher", "Coral bleaches above 30 degrees.", "writer", "A draft.", "FINISH")
    team = ["researcher", "writer"]
    prompt = (
        f"You are a supervisor tasked with managing a conversation between the following workers: "
        f"{', '.join(team)}. Given the following user request, respond with the worker to act "
        "next. Each worker will perform a task and respond with their results and status. When "
        "finished, respond with FINISH."
    )
    roles = {
        "researcher": "You are a researcher. Collect facts; do not write prose.",
        "writer": "You are a writer. Write a short article from the facts above.",
    }

    def supervise(state: MessagesState) -> dict[str, Any]:
        answer = model.invoke([SystemMessage(prompt), *state["messages"]])
        return {"messages": [AIMessage(answer.content, name="supervisor")]}

    def route(state: MessagesState) -> str:
        said = str(state["messages"][-1].content)
        return said if said in team else END

    graph: Any = StateGraph(MessagesState)
    graph.add_node("supervisor", supervise)
    for worker in team:

        def work(state: MessagesState, worker: str = worker) -> dict[str, Any]:
            answer = model.invoke([SystemMessage(roles[worker]), *state["messages"]])
            return {"messages": [HumanMessage(answer.content, name=worker)]}

        graph.add_node(worker, work)
        graph.add_edge(worker, "supervisor")
    graph.add_edge(START, "supervisor")
    graph.add_conditional_edges("supervisor", route, [*team, END])
    graph.compile().invoke({"messages": [HumanMessage("Write about coral reefs.")]})


if __name__ == "__main__":
    run(
        [
            chains,
            retrieval,
            structured_output,
            agent_with_tools,
            agent_with_a_response_format,
            agent_that_plans,
            agent_with_a_memory,
            agent_that_selects_tools,
            supervisor,
        ]
    )
