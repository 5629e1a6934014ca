"""A proxy that may open 300 files: its probes are answered whatever clients do."""

from __future__ import annotations

import asyncio
import json
import resource
import socket
import subprocess
import sys
from contextlib import ExitStack, suppress

import httpx
from starlette.types import Send

from tests.server.proxy.stand import (
    Upstream,
    UpstreamRequest,
    chat_completion,
    send_response,
    served,
)

FILES = 300
BODY = b'{"model": "m", "messages": []}'
POST = (
    b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    b"content-length: %d\r\n\r\n" % len(BODY)
)


async def _slow(request: UpstreamRequest, send: Send) -> None:
    await asyncio.sleep(3)
    await send_response(send, chat_completion("ok"))


def _limit_files() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (FILES, FILES))


def _status(wire: socket.socket) -> bytes:
    wire.settimeout(10)
    with suppress(ConnectionError):
        if answer := wire.recv(1000):
            return answer.split()[1]
    return b""


def test_health_is_answered_where_all_files_are_taken() -> None:
    with served(Upstream(_slow)) as port, ExitStack() as stack:
        command = [sys.executable, "-m", "guard", "proxy", "--port", "0", "--json"]
        process = subprocess.Popen(
            [*command, "-u", f"http://127.0.0.1:{port}"],
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=_limit_files,
        )
        stack.callback(process.wait)
        stack.callback(process.kill)
        assert process.stdout is not None
        url = json.loads(process.stdout.readline())["url"]
        address = ("127.0.0.1", int(url.rpartition(":")[2]))
        for content in (b"GET /v1/mod", POST + BODY):
            wires = [stack.enter_context(socket.create_connection(address, 10)) for _ in range(320)]
            for wire in wires:
                wire.sendall(content)
            assert httpx.get(f"{url}/health", timeout=5).status_code == 200
        answers = [_status(wire) for wire in wires]
        # its own lack of files is no fault of the upstream; past the reserve there is no answer
        assert set(answers) <= {b"200", b"503", b""}
        assert answers.count(b"200") > 50
        assert httpx.get(f"{url}/ready", timeout=5).status_code == 200
