"""An upstream that plays scripts and keeps what it is sent.

`POST /play` begins a scenario: `{"scenario": NAME, "replies": [...]}`. Each request of chat
completions, responses or embeddings is kept, and the first two get the next reply: a text, or a
list of calls `{"name": ..., "arguments": {...} or "raw text"}`. After the last one the reply is
`LAST`. Answers are whole: whether a body asks for a stream does not change what it says.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from typing import Any

LAST = "That is all there is to say about it."
_DIMENSIONS = 8


@dataclass(frozen=True, slots=True)
class Sent:
    """A request's raw body, and the scenario in which it came."""

    scenario: str
    path: str
    body: str


@dataclass
class Upstream:
    """What was sent, and the replies that are left."""

    sent: list[Sent] = field(default_factory=list)
    _scenario: str = ""
    _replies: list[Any] = field(default_factory=list)
    _calls: Iterator[int] = field(default_factory=count)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def answer(self, path: str, raw: str) -> dict[str, Any]:
        """The response to a POST. Raises ValueError for a path that nothing is known of."""
        body = json.loads(raw)
        with self._lock:
            if path == "/play":
                self._scenario, self._replies = body["scenario"], list(body["replies"])
                return {}
            self.sent.append(Sent(self._scenario, path, raw))
            if path == "/v1/embeddings":
                return _embeddings(body)
            write = {"/v1/chat/completions": _chat, "/v1/responses": _response}.get(path)
            if write is None:
                raise ValueError(f"no answer is known for {path}")
            reply = self._replies.pop(0) if self._replies else LAST
            text, calls = (reply, []) if isinstance(reply, str) else ("", reply)
            return write(str(body.get("model")), text, [self._call(call) for call in calls])

    def _call(self, call: dict[str, Any]) -> tuple[str, str, str]:
        """The id, name and arguments of a call."""
        given = call["arguments"]
        arguments = given if isinstance(given, str) else json.dumps(given)
        return f"call_{next(self._calls)}", call["name"], arguments


@contextmanager
def serving(upstream: Upstream) -> Iterator[str]:
    """Serve on a free port until the block ends; yields the address."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            raw = self.rfile.read(int(self.headers["content-length"])).decode()
            try:
                status, answer = 200, upstream.answer(self.path, raw)
            except ValueError as error:
                status, answer = 404, {"error": {"message": str(error)}}
            data = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)  # and the connection ends: a client may have lost its event loop

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing: requests are kept."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def _chat(model: str, text: str, calls: list[tuple[str, str, str]]) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": text or None}
    if calls:
        message["tool_calls"] = [
            {"id": key, "type": "function", "function": {"name": name, "arguments": arguments}}
            for key, name, arguments in calls
        ]
    end = "tool_calls" if calls else "stop"
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": model,
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": end}],
        "usage": {"prompt_tokens": 9, "completion_tokens": 9, "total_tokens": 18},
    }


def _response(model: str, text: str, calls: list[tuple[str, str, str]]) -> dict[str, Any]:
    part = {"type": "output_text", "text": text, "annotations": []}
    message = {"id": "msg_1", "type": "message", "status": "completed", "role": "assistant"}
    output: list[dict[str, Any]] = [{**message, "content": [part]}] if text else []
    output += [
        {
            "id": f"fc_{key}",
            "type": "function_call",
            "status": "completed",
            "call_id": key,
            "name": name,
            "arguments": arguments,
        }
        for key, name, arguments in calls
    ]
    usage = {"input_tokens": 9, "output_tokens": 9, "total_tokens": 18}
    details = {"input_tokens_details": {"cached_tokens": 0}}
    details["output_tokens_details"] = {"reasoning_tokens": 0}
    return {
        "id": "resp_1",
        "object": "response",
        "created_at": 1,
        "status": "completed",
        "model": model,
        "output": output,
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "usage": {**usage, **details},
    }


def _embeddings(body: dict[str, Any]) -> dict[str, Any]:
    texts = body["input"] if isinstance(body["input"], list) else [body["input"]]
    vector = [1.0 / _DIMENSIONS] * _DIMENSIONS
    data = [{"object": "embedding", "index": i, "embedding": vector} for i in range(len(texts))]
    usage = {"prompt_tokens": 3, "total_tokens": 3}
    return {"object": "list", "data": data, "model": body["model"], "usage": usage}
