"""`guard proxy` as a process."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from openai import OpenAI
from starlette.types import Send

from tests.server.proxy.stand import (
    Upstream,
    UpstreamRequest,
    chat_chunk,
    chat_completion,
    send_chunk,
    send_head,
    send_response,
    served,
)

BODY = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}


@contextmanager
def running(*arguments: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    command = [sys.executable, "-m", "guard", "proxy", "--port", "0", "--json", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, process.stderr and process.stderr.read()
        yield json.loads(line)["url"], process
    finally:
        process.kill()
        process.wait()


async def _ok(request: UpstreamRequest, send: Send) -> None:
    await send_response(send, chat_completion("ok"))


def test_a_client_needs_no_more_than_another_base_url(tmp_path: Path) -> None:
    with served(Upstream(_ok)) as port, running("-u", f"http://127.0.0.1:{port}/v1") as (url, _):
        client = OpenAI(base_url=f"{url}/v1", api_key="any")
        response = client.chat.completions.create(
            model="m", messages=[{"role": "user", "content": "hello"}]
        )
        assert response.choices[0].message.content == "ok"


def test_sigterm_lets_answers_end_and_takes_no_new_ones() -> None:
    async def slow(request: UpstreamRequest, send: Send) -> None:
        await send_head(send)
        for _ in range(10):
            await send_chunk(send, chat_chunk({"content": "a"}))
            await asyncio.sleep(0.1)
        await send_chunk(send, b"data: [DONE]\n\n", more=False)

    with (
        served(Upstream(slow)) as port,
        running("-u", f"http://127.0.0.1:{port}") as (url, process),
    ):
        texts: list[str] = []

        def ask() -> None:
            body: dict[str, Any] = {**BODY, "stream": True}
            texts.append(httpx.post(f"{url}/v1/chat/completions", json=body, timeout=20).text)

        thread = threading.Thread(target=ask)
        thread.start()
        time.sleep(0.4)
        process.send_signal(signal.SIGTERM)
        thread.join(20)
        assert texts[0].endswith("data: [DONE]\n\n")
        assert process.wait(10) in {0, -signal.SIGTERM}


def _fails(*arguments: str) -> str:
    command = [sys.executable, "-m", "guard", "proxy", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    return done.stderr


def test_what_cannot_be_served_is_one_line(tmp_path: Path) -> None:
    assert "there is no upstream" in _fails("--port", "0")
    assert "--upstream: 'nonsense' is not valid" in _fails("-u", "nonsense", "--port", "0")
    needs = _fails("-u", "http://x", "--key-env", "NOT_SET_ANYWHERE", "--port", "0")
    assert "NOT_SET_ANYWHERE is not set" in needs
    missing = tmp_path / "missing.toml"
    assert "cannot be read" in _fails("-c", str(missing), "--port", "0")


def test_a_proxy_without_policies_says_so(tmp_path: Path) -> None:
    guarded = tmp_path / "config.toml"
    guarded.write_text(
        '[[patterns]]\nname = "s"\nsource = "secrets"\n[policies.p]\nguards = ["s"]\n'
        'action = "block"\n[[upstreams]]\nname = "u"\nurl = "http://127.0.0.1:1"\n'
    )
    for arguments, is_told in ((("-u", "http://127.0.0.1:1"), True), (("-c", str(guarded)), False)):
        with running(*arguments) as (_, process):
            process.kill()
            assert process.stderr is not None
            warning = "warning: no policy has guards: every request passes unguarded"
            assert (warning in process.stderr.read()) == is_told


def test_the_proxy_runs_where_torch_is_not_installed() -> None:
    code = (
        "import sys\n"
        "class Block:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in {'torch', 'transformers', 'diffusers', 'sklearn'}:\n"
        "            raise ImportError(name)\n"
        "sys.meta_path.insert(0, Block())\n"
        "import server.proxy.run, server.proxy.cli\n"
        "import server.wire.forms, server.wire.schemas.images\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_health_check_takes_an_upstream_out_and_in(tmp_path: Path) -> None:
    well = True

    async def respond(request: UpstreamRequest, send: Send) -> None:
        await send_response(
            send, chat_completion("ok"), status=200 if well or request.method == "POST" else 500
        )

    with served(Upstream(respond)) as port:
        config = tmp_path / "config.toml"
        config.write_text(
            f'[[upstreams]]\nname = "u"\nurl = "http://127.0.0.1:{port}"\nhealth = "/health"\n'
            "health_every_s = 0.1\n"
        )
        with running("--config", str(config)) as (url, _):
            for expected in (200, 503, 200):
                well = expected == 200
                until = time.monotonic() + 10
                while httpx.get(f"{url}/ready").status_code != expected:
                    assert time.monotonic() < until
                    time.sleep(0.05)
                assert httpx.post(f"{url}/v1/chat/completions", json=BODY).status_code == expected
