"""The scripted upstream: what it is told to play, and what it received."""

from __future__ import annotations

import asyncio
import base64
import json
import struct
import threading
from typing import Any

from starlette.types import Send

from tests.conformance.upstream import chat, messages, responses
from tests.conformance.upstream.answers import answer_to
from tests.server.proxy.stand import (
    Upstream,
    UpstreamRequest,
    send_chunk,
    send_head,
    send_response,
)

UPSTREAM_KEY = "key-of-the-upstream"
RETRY_AFTER = "1"
VECTOR = [0.5, -0.25, 0.125]  # exact in 32 bits
MODEL = "gpt-4o-mini"
_APIS: dict[str, Any] = {
    "/v1/chat/completions": chat,
    "/v1/responses": responses,
    "/v1/messages": messages,
}
_SILENCE_S, _REPEATS, _PAUSE_S = 20.0, 1_000, 0.02

# status: type and code as OpenAI and as Anthropic name them, and a message
ERRORS: dict[int, tuple[tuple[str, str | None], str, str]] = {
    400: (
        ("invalid_request_error", "context_length_exceeded"),
        "invalid_request_error",
        "The maximum context length of the model is 128000 tokens.",
    ),
    429: (
        ("requests", "rate_limit_exceeded"),
        "rate_limit_error",
        "Rate limit reached for requests: 3 a minute.",
    ),
    500: (
        ("server_error", None),
        "api_error",
        "The server had an error while processing your request.",
    ),
}


class Stub:
    """Serve its `app`. A script is one of

    `greet`, `repeat` (personal data of the request), `call`, `object`, `secret`: answers;
    `400`, `429`, `500`: errors; `broken`: an error in the middle of a stream;
    `endless`: a stream until the client hangs up; `silent`: no answer until it does.
    """

    def __init__(self) -> None:
        self.app = Upstream(self._respond)
        self._script = "greet"

    def play(self, script: str) -> None:
        """Forget what was received, and answer so from now on."""
        self._script = script
        self.app.requests = []
        self.app.hung_up = threading.Event()

    @property
    def requests(self) -> list[UpstreamRequest]:
        """What was received since `play`."""
        return self.app.requests

    @property
    def hung_up(self) -> threading.Event:
        """Set once a client has gone before its answer's end."""
        return self.app.hung_up

    async def _respond(self, request: UpstreamRequest, send: Send) -> None:
        path = request.path.partition("?")[0]
        given = (request.header("authorization") or "").removeprefix("Bearer ")
        if given != UPSTREAM_KEY:
            await send_response(send, {"error": {"message": f"key {given!r}"}}, status=401)
        elif path == "/v1/models":
            await send_response(send, _models())
        elif path == "/v1/embeddings":
            await send_response(send, _embeddings(request.json))
        elif path in _APIS:
            await self._answer(_APIS[path], request, send)
        else:
            await send_response(send, {"error": {"message": f"no {path}"}}, status=404)

    async def _answer(self, api: Any, request: UpstreamRequest, send: Send) -> None:
        body, script = request.json, self._script
        asked, model = api.read(body, request.body.decode()), body["model"]
        if script == "silent":
            await asyncio.sleep(_SILENCE_S)
        if script.isdigit():
            await _send_error(api, int(script), send)
        elif not asked.stream:
            await send_response(send, api.whole(answer_to(script, asked), asked, model))
        elif script in {"endless", "broken"}:
            await _stream_on(api, model, script, send)
        else:
            await send_head(send, "text/event-stream; charset=utf-8")
            for event in api.events(answer_to(script, asked), asked, model):
                await send_chunk(send, event)
            await send_chunk(send, b"", more=False)


async def _stream_on(api: Any, model: str, script: str, send: Send) -> None:
    begin, again = api.endless(model)
    await send_head(send)
    await send_chunk(send, begin)
    if script == "broken":
        await send_chunk(send, again * 3)
        await send_chunk(send, _error(api.error_event, api, 500), more=False)
        return
    for _ in range(_REPEATS):
        await send_chunk(send, again)
        await asyncio.sleep(_PAUSE_S)
    await send_chunk(send, b"", more=False)


async def _send_error(api: Any, status: int, send: Send) -> None:
    headers = {"retry-after": RETRY_AFTER} if status == 429 else {}
    await send_response(send, _error(api.error, api, status), status=status, headers=headers)


def _error(write: Any, api: Any, status: int) -> Any:
    (kind, code), anthropic, message = ERRORS[status]
    return write(anthropic if api is messages else kind, code, message)


def _models() -> dict[str, Any]:
    model = {"id": MODEL, "object": "model", "created": 1_700_000_000, "owned_by": "stub"}
    anthropic = {"type": "model", "display_name": MODEL, "created_at": "2024-01-01T00:00:00Z"}
    return {
        "object": "list",
        "data": [{**model, **anthropic}],
        "has_more": False,
        "first_id": MODEL,
        "last_id": MODEL,
    }


def _embeddings(body: dict[str, Any]) -> dict[str, Any]:
    texts = body["input"] if isinstance(body["input"], list) else [body["input"]]
    vector: Any = VECTOR
    if body.get("encoding_format") == "base64":
        vector = base64.b64encode(struct.pack(f"<{len(VECTOR)}f", *VECTOR)).decode()
    data = [
        {"object": "embedding", "index": index, "embedding": vector} for index in range(len(texts))
    ]
    usage = {"prompt_tokens": 3, "total_tokens": 3}
    return {"object": "list", "data": data, "model": body["model"], "usage": usage}


def dumped(requests: list[UpstreamRequest]) -> str:
    """The bodies of requests with what they say unescaped."""
    return "\n".join(
        json.dumps(request.json, ensure_ascii=False) if request.body else "" for request in requests
    )
