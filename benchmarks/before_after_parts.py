"""The parts that `before_after` measures: the configuration of a server, and its load over HTTP.

Neither names a module of the project, so that both hold in any checkout.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.proxy import BODY, SCREENS
from benchmarks.stream_gaps import POLICIES, PROSE
from benchmarks.wire import Connection, answered, request, saturating

TOKENS, STEPS = 48, 25
PROXY_SECONDS, PROXY_CONNECTIONS = 3.0, 16
CHATS, CHAT_CONNECTIONS = 2000, 8
STREAMS, STREAM_TOKENS = 200, 100

_LANGUAGE = """
[server]
max_batch = 8
[[models]]
name = "model"
source = {source}
engine = "transformers"
dtype = "float32"
device = "cpu"
[[guards]]
name = "topic"
artifact = {artifact}
[policies.guarded]
guards = ["topic"]
action = "steer"
"""
_IMAGES = """
[server]
max_batch = 4
[[models]]
name = "model"
source = "emoji"
engine = "diffusers"
dtype = "float32"
device = "cpu"
[[guards]]
name = "embedding"
artifact = {embedding}
[[guards]]
name = "latents"
artifact = {latents}
[policies.guarded]
guards = ["embedding", "latents"]
action = "refine"
"""
_PROMPTS = (
    ("The capital of France is", False),
    ("Harry Potter goes to a school named", True),
    ("To bake a loaf of bread, first", False),
    ("A bicycle stays upright because", True),
    ("The three largest planets are", False),
    ("The author of the Harry Potter books is", True),
    ("A short poem about the sea:", False),
    ("Water boils at a temperature of", True),
)
"""A prompt, and whether its row is guarded."""


@dataclass(frozen=True, slots=True)
class Part:
    """A server and its load.

    `write(checkout, folder)` gives the configuration. `load(port, warm_up)` sends the requests and
    gives the units of work that were done; `figure(seconds, units)` is the reported number.
    """

    command: str
    write: Callable[[Path, Path], str]
    load: Callable[[int, bool], Coroutine[Any, Any, int]]
    unit: str
    figure: Callable[[float, int], float]


async def _responses(port: int, path: str, bodies: Sequence[dict[str, object]]) -> list[Any]:
    """The decoded responses of requests that are sent together."""

    async def respond(body: dict[str, object]) -> Any:
        connection = await Connection.open(port)
        status, content = await connection.respond(request(port, body, path))
        connection.close()
        if status != 200:
            raise SystemExit(f"{path} answered {status}: {content[:500]!r}")
        return json.loads(content)

    return list(await asyncio.gather(*map(respond, bodies)))


async def _complete(port: int, warm_up: bool) -> int:
    """Tokens of eight completions."""
    bodies: list[dict[str, object]] = [
        {
            "model": "model",
            "prompt": prompt,
            "max_tokens": 4 if warm_up else TOKENS,
            "temperature": 0,
            "guard": {"policy": "guarded" if guarded else "none"},
        }
        for prompt, guarded in _PROMPTS
    ]
    responses = await _responses(port, "/v1/completions", bodies)
    return sum(response["usage"]["completion_tokens"] for response in responses)


async def _generate_images(port: int, warm_up: bool) -> int:
    """Four images of one request, which share every step: several requests would join the batch as
    they arrive, and the number of forwards would depend on that."""
    body: dict[str, object] = {
        "model": "model",
        "prompt": "a rose and a cat",
        "n": 4,
        "seed": 0,
        "num_inference_steps": 2 if warm_up else STEPS,
        "guidance_scale": 3.0,
        "guard": {"policy": "guarded"},
    }
    (response,) = await _responses(port, "/v1/images/generations", [body])
    return len(response["data"])


async def _saturate(port: int, warm_up: bool) -> int:
    """Requests through the proxy, as fast as it takes them."""
    seconds = 0.5 if warm_up else PROXY_SECONDS
    rate = await saturating(port, request(port, BODY), PROXY_CONNECTIONS, seconds)
    return round(rate * seconds)


def _chats(policy: str, *, stream: bool, requests: int) -> Callable[[int, bool], Any]:
    """The load of chats of a kilobyte, each with a text of its own, so that no cache has it."""

    async def load(port: int, warm_up: bool) -> int:
        count = requests // 10 if warm_up else requests
        first = requests if warm_up else 0
        bodies: list[dict[str, object]] = [
            {
                "model": "stub",
                "stream": stream,
                "guard": {"policy": policy},
                "messages": [
                    {"role": "system", "content": "You are a guide in a museum of technology."},
                    {"role": "user", "content": f"Visitor {number} asks about this: {PROSE[:850]}"},
                ],
            }
            for number in range(first, first + count)
        ]
        return await answered(port, (request(port, body) for body in bodies), CHAT_CONNECTIONS)

    return load


def _chat_part(policy: str, *, stream: bool) -> Part:
    units = STREAM_TOKENS if stream else 1
    return Part(
        "proxy",
        lambda _checkout, _folder: POLICIES,
        _chats(policy, stream=stream, requests=STREAMS if stream else CHATS),
        "ms/token" if stream else "ms/request",
        lambda seconds, requests: 1000 * seconds / (requests * units),
    )


def _write_language(checkout: Path, folder: Path) -> str:
    """The configuration of smollm2, or of the tiny model where `folder` holds one."""
    guard = checkout / "examples" / "harry-potter" / "steer.safetensors"
    source = "smollm2"
    if (folder / "tiny").is_dir():
        source, guard = str(folder / "tiny"), folder / "tiny.safetensors"
    return _LANGUAGE.format(source=json.dumps(source), artifact=json.dumps(str(guard)))


def _write_images(checkout: Path, _folder: Path) -> str:
    fitted = checkout / "examples" / "emoji" / "fitted"
    paths = {
        "embedding": fitted / "rose-cgce.safetensors",
        "latents": fitted / "rose-latents.safetensors",
    }
    return _IMAGES.format(**{name: json.dumps(str(path)) for name, path in paths.items()})


PARTS: Mapping[str, Part] = {
    "transformers": Part(
        "serve", _write_language, _complete, "tokens/s", lambda seconds, tokens: tokens / seconds
    ),
    "images": Part(
        "serve",
        _write_images,
        _generate_images,
        "s/image",
        lambda seconds, images: seconds / images,
    ),
    "proxy": Part(
        "proxy",
        lambda _checkout, _folder: SCREENS,
        _saturate,
        "ms/request",
        lambda seconds, requests: 1000 * seconds / requests,
    ),
    "chat-none": _chat_part("none", stream=False),
    "chat-private": _chat_part("private", stream=False),
    "stream-none": _chat_part("none", stream=True),
    "stream-private": _chat_part("private", stream=True),
}
