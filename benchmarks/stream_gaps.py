"""Time between the tokens of a stream through the proxy, beside the upstream alone.

    python -m benchmarks.stream_gaps [--checkout PATH] [--streams 4] [--gap-ms 20] [--json]

The upstream sends a token every 20 ms, of ordinary prose or of a tool's arguments, and notes when
each character leaves. The same streams are read from the upstream itself, through the proxy under a
policy without guards, and through the proxy under a policy that redacts by both shipped lists and
restores. Reported for each are medians and 95th percentiles over all streams:

    first     from the request to the first text, ms
    gap       between two arrivals of text, ms; tokens that come together are one arrival
    delay     from leaving the upstream to reaching the client, of each character, ms
    behind    characters that have left the upstream and not reached the client, as text arrives

`--checkout` is the checkout whose proxy is measured, this one if it is left out.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import statistics
import sys
import tempfile
import time
from bisect import bisect_right
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvloop
from rich.console import Console
from rich.table import Table

from benchmarks.processes import free_port, running
from benchmarks.wire import Connection, request

HERE = Path(__file__).parents[1]
POLICIES = """
[[patterns]]
name = "secrets"
source = "secrets"
[[patterns]]
name = "personal-data"
source = "personal-data"
[policies.private]
guards = ["secrets", "personal-data"]
action = "redact"
[policies.private.screen]
restore = true
"""
SIDES = {"upstream": None, "none": "none", "private": "private"}
"""The policy of each side; None is the upstream itself."""
FIGURES = ("first", "gap p50", "gap p95", "delay p50", "delay p95", "behind p50")
PROSE = (
    """
The bicycle was not invented in one day, nor by one man. In the summer of the year without a summer,
when oats were dear and horses went hungry, a forester in Mannheim built a wooden machine with two
wheels in line and pushed himself along the road with his feet. It had no pedals and no chain, but
it could be steered, and that was the discovery: whoever steers into the fall does not fall. Half a
century went by before someone in Paris put cranks on the front wheel. The ride was so rough that
the English called it a boneshaker, and they were right. Then the wheel grew, since a larger one
goes further with each turn of the pedals, until the rider sat above it like a man on a ladder.

What made it a thing for everybody was dull by comparison: a chain to the rear wheel, two wheels of
the same size, and tyres filled with air. With these it was safe, quick and cheap; within ten years
the streets were full of them. Women rode, and wore what they pleased while riding. Workers lived
further from their factories. Villages that had married among themselves for centuries stopped
doing so, which can still be read in the parish registers. Roads were paved for cyclists, long
before there were cars to drive on them, and two brothers who sold bicycles built an aeroplane.
""".strip()
    .replace("\n\n", "\0")
    .replace("\n", " ")
    .replace("\0", "\n\n")
)
ARGUMENTS = json.dumps(
    {
        "path": "museum/labels/bicycle.md",
        "create": True,
        "sections": [
            {"title": "The first two wheels", "order": 1, "body": PROSE[:300]},
            {"title": "For everybody", "order": 2, "body": PROSE[300:700]},
        ],
        "tags": ["transport", "history", "nineteenth century"],
    }
)
CONTENTS = {"prose": PROSE, "tool arguments": ARGUMENTS}
_TOKEN = re.compile(r"\s?\S{1,6}|\s")


def main() -> None:
    """Measure, and print a table, or JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkout", type=Path, default=HERE)
    parser.add_argument("--streams", type=int, default=4, help="at once")
    parser.add_argument("--gap-ms", type=float, default=20.0)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    checkout = arguments.checkout.resolve()
    with ExitStack() as stack, tempfile.TemporaryDirectory() as folder:
        upstream, proxy = free_port(), free_port()
        config = Path(folder) / "config.toml"
        config.write_text(POLICIES, "utf-8")
        command = [sys.executable, "-m", "guard", "proxy", "--config", str(config)]
        command += ["--port", str(proxy), "--upstream", f"http://127.0.0.1:{upstream}"]
        environment = {"PYTHONPATH": str(checkout)}
        stack.enter_context(running(command, proxy, folder=checkout, environment=environment))
        ports = {"upstream": upstream, "proxy": proxy}
        result = uvloop.run(_measure(ports, arguments.streams, arguments.gap_ms / 1000))
    if arguments.json:
        print(json.dumps(result, indent=2))
        return
    table = Table("content", "side", *FIGURES)
    for content, sides in result.items():
        for side, figures in sides.items():
            table.add_row(content, side, *(f"{figures[name]:.1f}" for name in FIGURES))
    Console().print(table)


@dataclass(slots=True)
class _Stream:
    """One stream: the characters that had left, and had arrived, by time."""

    text: str
    began: float = 0.0
    left: list[tuple[float, int]] = field(default_factory=list)
    arrived: list[tuple[float, int]] = field(default_factory=list)
    received: str = ""


class _Upstream:
    """Streams the content that the first message names."""

    def __init__(self, gap_s: float) -> None:
        self.gap_s = gap_s
        self.streams: dict[str, _Stream] = {}

    async def respond(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await _head(reader):
            length = re.search(rb"content-length: *(\d+)", head.lower())
            body = json.loads(await reader.readexactly(int(length[1]))) if length else {}
            if "messages" not in body:
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
                continue
            name = body["messages"][0]["content"]
            await self._send(writer, self.streams[name], is_tool="tool" in name)

    async def _send(self, writer: asyncio.StreamWriter, stream: _Stream, *, is_tool: bool) -> None:
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
            b"transfer-encoding: chunked\r\n\r\n"
        )
        call: dict[str, Any] = {"index": 0, "id": "call_1", "type": "function"}
        call["function"] = {"name": "write_file", "arguments": ""}
        writer.write(_event({"role": "assistant"} | ({"tool_calls": [call]} if is_tool else {})))
        due, count = time.perf_counter(), 0
        for token in _TOKEN.findall(stream.text):
            due += self.gap_s
            await asyncio.sleep(due - time.perf_counter())
            delta = {"content": token}
            if is_tool:
                delta = {"tool_calls": [{"index": 0, "function": {"arguments": token}}]}
            count += len(token)
            stream.left.append((time.perf_counter(), count))
            writer.write(_event(delta))
        writer.write(_event({}, "tool_calls" if is_tool else "stop"))
        writer.write(_chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")


async def _head(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, asyncio.CancelledError):
        return b""  # the proxy keeps its connections until the end


def _event(delta: dict[str, Any], end: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": end}
    event = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "stub"}
    return _chunk(b"data: " + json.dumps({**event, "choices": [choice]}).encode() + b"\n\n")


def _chunk(content: bytes) -> bytes:
    return f"{len(content):x}\r\n".encode() + content + b"\r\n"


async def _measure(
    ports: dict[str, int], count: int, gap_s: float
) -> dict[str, dict[str, dict[str, float]]]:
    upstream = _Upstream(gap_s)
    server = await asyncio.start_server(upstream.respond, "127.0.0.1", ports["upstream"])
    result: dict[str, dict[str, dict[str, float]]] = {}
    async with server:
        for content, text in CONTENTS.items():
            result[content] = {}
            for side, policy in SIDES.items():
                port = ports["upstream" if policy is None else "proxy"]
                # the first requests pay for imports and caches
                for length, streams in ((200, 1), (len(text), count)):
                    names = [f"{content} as {side}, {letter}" for letter in "abcdefgh"[:streams]]
                    upstream.streams = {name: _Stream(text[:length]) for name in names}
                    await asyncio.gather(
                        *(
                            _read(port, name, stream, policy)
                            for name, stream in upstream.streams.items()
                        )
                    )
                result[content][side] = _figures(list(upstream.streams.values()))
    return result


async def _read(port: int, name: str, stream: _Stream, policy: str | None) -> None:
    body: dict[str, object] = {
        "model": "stub",
        "stream": True,
        "messages": [{"role": "user", "content": name}],
    }
    if policy is not None:
        body["guard"] = {"policy": policy}
    connection = await Connection.open(port)
    stream.began = time.perf_counter()
    buffer = b""
    async for chunk in connection.chunks(request(port, body)):
        *events, buffer = (buffer + chunk).split(b"\n\n")
        text = "".join(map(_text, events))
        if text:
            stream.received += text
            stream.arrived.append((time.perf_counter(), len(stream.received)))
    connection.close()
    if stream.received != stream.text:
        raise SystemExit(f"another text arrived: {stream.received[-200:]!r}")


def _text(event: bytes) -> str:
    data = event.partition(b"data: ")[2]
    if not data or data == b"[DONE]":
        return ""
    delta = json.loads(data)["choices"][0]["delta"]
    calls = delta.get("tool_calls") or []
    arguments = "".join(call.get("function", {}).get("arguments") or "" for call in calls)
    return (delta.get("content") or "") + arguments


def _figures(streams: Sequence[_Stream]) -> dict[str, float]:
    firsts, gaps, delays, behind = [], [], [], []
    for stream in streams:
        firsts.append(stream.arrived[0][0] - stream.began)
        times = [at for at, _ in stream.arrived]
        gaps += [later - earlier for earlier, later in zip(times, times[1:], strict=False)]
        counts = [count for _, count in stream.left]
        done = 0
        for at, count in stream.arrived:
            for place in range(done, count):
                delays.append(at - stream.left[bisect_right(counts, place)][0])
            left = bisect_right(stream.left, (at, len(stream.text)))
            behind.append(counts[left - 1] - done)
            done = count
    return {
        "first": 1000 * statistics.median(firsts),
        "gap p50": 1000 * statistics.median(gaps),
        "gap p95": 1000 * statistics.quantiles(gaps, n=20)[18],
        "delay p50": 1000 * statistics.median(delays),
        "delay p95": 1000 * statistics.quantiles(delays, n=20)[18],
        "behind p50": statistics.median(behind),
    }


if __name__ == "__main__":
    main()
