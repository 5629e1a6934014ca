"""The clients of the matrix."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

_OPENAI = {
    400: "BadRequestError",
    401: "AuthenticationError",
    429: "RateLimitError",
    500: "InternalServerError",
}


@dataclass(frozen=True)
class Client:
    """One client on one API."""

    name: str
    package: str
    """The distribution, on PyPI or npm, whose version the matrix tells."""
    driver: str
    """Its file's name below `drivers`."""
    api: str = "chat"
    errors: Mapping[int, str] = field(default_factory=lambda: _OPENAI)
    """The class of its exceptions, by status."""
    timeout: str = "APITimeoutError"
    """The class of its exception where no answer has come in time."""
    broken: str = "APIError"
    """The class of its exception where an event of a stream is an error."""
    blocked: str = ""
    """The class of its exception for a blocked answer; empty where it returns one."""
    probe: str = "text"
    """What it does to ask anything at all."""
    newest: bool = False
    """Whether it is a newer major than the one that other clients take."""

    lacks: Mapping[str, str] = field(default_factory=dict)
    """Features that it does not have without a proxy either, and what it does."""

    @property
    def in_node(self) -> bool:
        return self.driver.endswith(".mjs")

    @property
    def title(self) -> str:
        return f"{self.name} ({self.api})"


def _on(client: Client, *apis: str) -> list[Client]:
    return [replace(client, api=api) for api in apis]


_PATIENT = dict.fromkeys(
    ("rate limit", "rate limit, streamed"), "it waits as long as it is told, then asks again"
)
_UNHEARD = "it takes such a stream as one that is complete"
_INSTRUCTOR = Client(
    "instructor",
    "instructor",
    "instructor_python.py",
    errors=dict.fromkeys(_OPENAI, "InstructorRetryException"),
    timeout="InstructorRetryException",
    broken="InstructorRetryException",
    blocked="InstructorRetryException",
    probe="object",
)
_PYDANTIC_AI = Client(
    "pydantic-ai",
    "pydantic-ai-slim",
    "pydantic_ai_agent.py",
    errors=dict.fromkeys(_OPENAI, "ModelHTTPError"),
    timeout="ModelAPIError",
    blocked="ContentFilterError",
)

CLIENTS: tuple[Client, ...] = (
    *_on(Client("openai-python", "openai", "openai_python.py"), "chat", "responses"),
    *_on(
        Client("openai-python, newest", "openai", "openai_python.py", newest=True),
        *("chat", "responses"),
    ),
    *_on(
        Client("openai-node", "openai", "openai_node.mjs", timeout="APIConnectionTimeoutError"),
        *("chat", "responses"),
    ),
    Client("anthropic", "anthropic", "anthropic_python.py", "messages"),
    Client("anthropic, newest", "anthropic", "anthropic_python.py", "messages", newest=True),
    Client("langchain-openai", "langchain-openai", "langchain_openai.py"),
    Client(
        "langchain-openai",
        "langchain-openai",
        "langchain_openai.py",
        "responses",
        broken="ValueError",
    ),
    *_on(
        Client("litellm", "litellm", "litellm_python.py", timeout="Timeout"),
        *("chat", "responses"),
    ),
    Client(
        "litellm",
        "litellm",
        "litellm_python.py",
        "messages",
        timeout="Timeout",
        lacks={"embeddings": "not offered by this client"},
    ),
    Client("llama-index", "llama-index-llms-openai", "llama_index_openai.py"),
    Client(
        "llama-index",
        "llama-index-llms-openai",
        "llama_index_openai.py",
        "responses",
        lacks={
            "structured output, streamed": "it gives an object without values",
            "error in a stream": _UNHEARD,
        },
    ),
    Client("llm", "llm", "llm_python.py", lacks=_PATIENT),
    Client(
        "llm",
        "llm",
        "llm_python.py",
        "responses",
        lacks={
            **_PATIENT,
            "error in a stream": _UNHEARD,
            "blocked answer, streamed": "it takes no notice of why a stream is incomplete",
        },
    ),
    _INSTRUCTOR,
    replace(
        _INSTRUCTOR,
        api="chat-json",
        lacks={"error in a stream": "it says that the JSON is broken"},
    ),
    replace(
        _INSTRUCTOR,
        api="responses",
        lacks={"error in a stream": "it gives no object, and no exception"},
    ),
    _PYDANTIC_AI,
    replace(_PYDANTIC_AI, api="messages", broken="ModelAPIError"),
    replace(
        _PYDANTIC_AI,
        api="responses",
        lacks={
            "error in a stream": _UNHEARD,
            "blocked answer, streamed": "it takes no notice of why a stream is incomplete",
        },
    ),
    *_on(
        Client(
            "AI SDK",
            "ai",
            "ai_sdk.mjs",
            errors=dict.fromkeys(_OPENAI, "AI_APICallError"),
            timeout="TimeoutError",
        ),
        *("chat", "responses"),
    ),
)
