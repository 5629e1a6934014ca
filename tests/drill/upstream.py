"""An upstream that knows what it must never see: `python -m tests.drill.upstream PORT NOTES`.

Every request has an address of CLIENT_SECRET, which the proxy's policy takes out; one that arrives
here was unguarded, and is noted in a line of NOTES. Every answer has ANSWER_SECRET, over several
chunks where it is streamed, which no client may see.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from aiohttp import web

CLIENT_SECRET = "@clients.example.com"
ANSWER_SECRET = "carol.jones@answers.example.com"
WORDS = f"A long tale begins here, and then write to {ANSWER_SECRET} about it, said the fox. " * 3
_PIECE = 7
_GAP_S = 0.004


async def _answer(request: web.Request) -> web.StreamResponse:
    raw = await request.text()
    if CLIENT_SECRET in raw:
        with request.app[_NOTES].open("a") as notes:
            notes.write("a request arrived unguarded\n")
    head = {"id": "c", "created": 1, "model": "stub"}
    if not json.loads(raw).get("stream"):
        message = {"role": "assistant", "content": WORDS}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        usage = {"prompt_tokens": 9, "completion_tokens": 40, "total_tokens": 49}
        return web.json_response(
            {**head, "object": "chat.completion", "choices": [choice], "usage": usage}
        )
    response = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await response.prepare(request)
    for start in range(0, len(WORDS), _PIECE):
        await response.write(_event(head, {"content": WORDS[start : start + _PIECE]}, None))
        await asyncio.sleep(_GAP_S)
    await response.write(_event(head, {}, "stop") + b"data: [DONE]\n\n")
    return response


def _event(head: dict[str, object], delta: dict[str, str], reason: str | None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": reason}
    event = {**head, "object": "chat.completion.chunk", "choices": [choice]}
    return b"data: " + json.dumps(event).encode() + b"\n\n"


async def _models(request: web.Request) -> web.Response:
    return web.json_response({"object": "list", "data": [{"id": "stub", "object": "model"}]})


_NOTES = web.AppKey("notes", Path)


def main() -> None:
    app = web.Application()
    app[_NOTES] = Path(sys.argv[2])
    app.router.add_post("/v1/chat/completions", _answer)
    app.router.add_get("/{path:.*}", _models)
    web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), print=None)


if __name__ == "__main__":
    main()
