"""Images that pass through the proxy, under a policy that reads images."""

from __future__ import annotations

import base64
import json
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from PIL import Image
from starlette.types import Send

from tests.classifiers.images import tiny_encoder
from tests.classifiers.images.tiny_encoder import file_of
from tests.server.proxy.screened import streaming
from tests.server.proxy.stand import (
    Proxy,
    Upstream,
    UpstreamRequest,
    chat_completion,
    proxied,
    send_response,
    served,
)

CONFIG = """
[server]
default_policy = "p"
[[guards]]
name = "red"
artifact = "red.safetensors"
[policies.p]
guards = ["red"]
action = "{action}"
on_error = "{on_error}"
[policies.p.screen]
{screen}
"""
PICTURE = {"prompt": "a square", "model": "m"}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GUARD_CACHE", str(tmp_path / "cache"))
    card = tiny_encoder.write(tmp_path / "cache" / "models" / "colours")
    tiny_encoder.red_screen(card, tmp_path / "red.safetensors")


@contextmanager
def reading(
    folder: Path,
    upstream: Upstream,
    action: str = "block",
    screen: str = "",
    on_error: str = "closed",
) -> Iterator[Proxy]:
    text = CONFIG.format(action=action, screen=screen, on_error=on_error)
    with served(upstream) as port, proxied(folder, text, port) as proxy:
        yield proxy


def coded(image: bytes | str) -> str:
    return base64.b64encode(image if isinstance(image, bytes) else file_of(image)).decode()


def url(image: bytes | str, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{coded(image)}"


def drawing(*images: dict[str, Any]) -> Upstream:
    async def respond(request: UpstreamRequest, send: Send) -> None:
        await send_response(send, {"created": 1, "data": list(images)})

    return Upstream(respond)


def answering(body: dict[str, Any]) -> Upstream:
    async def respond(request: UpstreamRequest, send: Send) -> None:
        await send_response(send, body)

    return Upstream(respond)


def draw(proxy: Proxy) -> httpx.Response:
    return httpx.post(f"{proxy.url}/v1/images/generations", json=PICTURE, timeout=20)


def show(proxy: Proxy, part: dict[str, Any]) -> httpx.Response:
    messages = [{"role": "user", "content": [{"type": "text", "text": "what is it"}, part]}]
    body = {"model": "m", "messages": messages}
    return httpx.post(f"{proxy.url}/v1/chat/completions", json=body, timeout=20)


def image_part(address: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": address}}


def bomb() -> bytes:
    """A PNG of 100 bytes with 3.6 thousand million pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    size = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1000))
    start = b"\x89PNG\r\n\x1a\n"
    return start + chunk(b"IHDR", size) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def test_an_image_that_fires_is_refused_as_a_generation_is(tmp_path: Path) -> None:
    with reading(
        tmp_path, drawing({"b64_json": coded("blue")}, {"b64_json": coded("red")})
    ) as proxy:
        answer = draw(proxy)
        (line,) = proxy.audit_lines()
    assert answer.status_code == 400
    body = answer.json()
    assert body["error"]["code"] == "content_policy_violation" and coded("red") not in answer.text
    (guard,) = body["guard"]["guards"]
    assert guard["fired"] and guard["action"] == "block" and guard["place"] == "data[1].b64_json"
    assert guard["score"] > 0.99 and line["guards"] == body["guard"]["guards"]
    assert line["outcome"] == "blocked"


def test_other_images_pass_as_they_are(tmp_path: Path) -> None:
    images = [{"b64_json": coded("blue")}, {"b64_json": coded(file_of("#22cc22", "WEBP"))}]
    with reading(tmp_path, drawing(*images)) as proxy:
        answer = draw(proxy).json()
    assert [image["b64_json"] for image in answer["data"]] == [each["b64_json"] for each in images]
    assert answer["guard"]["outcome"] == "pass" and answer["guard"]["unscreened"] == []


@pytest.mark.parametrize("action", ["flag", "observe"])
def test_a_policy_may_let_it_pass(tmp_path: Path, action: str) -> None:
    with reading(tmp_path, drawing({"b64_json": coded("red")}), action) as proxy:
        answer = draw(proxy)
    verdict = answer.json()["guard"]
    assert answer.status_code == 200 and verdict["guards"][0]["fired"]
    assert verdict["outcome"] == {"flag": "flagged", "observe": "pass"}[action]


BROKEN = [
    {"url": "https://images.example/1.png"},
    {"b64_json": coded(file_of("blue")[:60])},
    {"b64_json": coded(bomb())},
    {"b64_json": coded(b"GIF89a")},
    {"b64_json": "no base64!"},
    {"url": "/files/1.png"},
    {"picture": coded("red")},
]


@pytest.mark.parametrize(
    "image", BROKEN, ids=["address", "cut", "bomb", "other", "code", "path", "name"]
)
def test_an_image_that_cannot_be_read_does_not_leave(tmp_path: Path, image: dict[str, str]) -> None:
    with reading(tmp_path, drawing({"b64_json": coded("blue")}, image)) as proxy:
        answer = draw(proxy)
    assert answer.status_code == 502 and answer.json()["error"]["code"] == "unreadable_answer"
    assert not {"data", "created"} & answer.json().keys()


@pytest.mark.parametrize("image", BROKEN[:3], ids=["address", "cut", "bomb"])
def test_unless_the_policy_is_open(tmp_path: Path, image: dict[str, str]) -> None:
    with reading(tmp_path, drawing(image), on_error="open") as proxy:
        answer = draw(proxy)
    assert answer.status_code == 200 and answer.json()["data"] == [image]
    verdict = answer.json()["guard"]
    assert verdict["outcome"] == "error" and verdict["unscreened"] == ["pictures"]


PARTS = {
    "chat": lambda address: image_part(address),
    "messages": lambda address: {
        "type": "image",
        "source": {
            "type": "base64",
            "media_type": "image/png",
            "data": address.partition(",")[2],
        },
    },
}


@pytest.mark.parametrize("api", PARTS)
def test_an_image_of_a_chat_is_read_before_it_is_sent_on(tmp_path: Path, api: str) -> None:
    upstream = answering(chat_completion("a square"))
    with reading(tmp_path, upstream) as proxy:
        refused, passed = (show(proxy, PARTS[api](url(colour))) for colour in ("red", "blue"))
    assert refused.status_code == 400 and refused.json()["error"]["code"] == "content_filter"
    assert passed.status_code == 200 and passed.json()["guard"]["outcome"] == "pass"
    assert len(upstream.requests) == 1


def test_an_openai_client_is_told(tmp_path: Path) -> None:
    with reading(tmp_path, answering(chat_completion("a square"))) as proxy:
        client = openai.OpenAI(base_url=f"{proxy.url}/v1", api_key="none", max_retries=0)
        part: Any = {"type": "input_image", "image_url": url("red"), "detail": "auto"}
        with pytest.raises(openai.BadRequestError) as refused:
            client.responses.create(model="m", input=[{"role": "user", "content": [part]}])
    assert refused.value.code == "content_filter"


@pytest.mark.parametrize(
    "part",
    [
        image_part("https://images.example/1.png"),
        image_part("file:///etc/passwd"),
        image_part(url(bomb())),
        image_part("data:image/png;base64,AA AA"),
        {"type": "image_url", "image_url": {"file_id": "file-1"}},
        {"type": "video_url", "video_url": {"url": "data:video/mp4;base64,AAAA"}},
    ],
    ids=["address", "file", "bomb", "spaces", "reference", "video"],
)
def test_an_image_that_cannot_be_read_is_not_sent_on(tmp_path: Path, part: dict[str, Any]) -> None:
    upstream = answering(chat_completion("a square"))
    with reading(tmp_path, upstream) as proxy:
        answer = show(proxy, part)
    assert answer.status_code == 400 and answer.json()["error"]["code"] == "unreadable_image"
    assert answer.json()["error"]["param"].startswith("messages[0].content[1]")
    assert not upstream.requests


def test_colours_under_transparency_are_read_too(tmp_path: Path) -> None:
    hidden = Image.new("RGBA", (20, 12), (255, 0, 0, 0))
    with reading(tmp_path, answering(chat_completion("a square"))) as proxy:
        assert show(proxy, image_part(url(file_of(hidden)))).status_code == 400
        clear = Image.new("RGBA", (20, 12), (0, 0, 255, 0))
        assert show(proxy, image_part(url(file_of(clear)))).status_code == 200


def test_a_policy_may_read_answers_alone(tmp_path: Path) -> None:
    screen = 'look = ["response"]\nunscreened = ["images"]'
    with reading(tmp_path, answering(chat_completion("a square")), screen=screen) as proxy:
        answer = show(proxy, image_part(url("red")))
        assert answer.status_code == 200 and answer.json()["guard"]["unscreened"] == ["pictures"]
    with reading(tmp_path, drawing({"b64_json": coded("red")}), screen=screen) as proxy:
        assert draw(proxy).status_code == 400


def test_too_many_images_are_refused(tmp_path: Path) -> None:
    upstream = answering(chat_completion("a square"))
    with reading(tmp_path, upstream) as proxy:
        part = image_part(url("blue"))
        messages = [{"role": "user", "content": [part] * 65}]
        body = {"model": "m", "messages": messages}
        answer = httpx.post(f"{proxy.url}/v1/chat/completions", json=body, timeout=20)
    assert answer.status_code == 413 and answer.json()["error"]["code"] == "too_many_images"


def _event(kind: str, **fields: Any) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **fields})}\n\n".encode()


def test_a_partial_image_ends_the_stream(tmp_path: Path) -> None:
    events = [
        _event("image_generation.partial_image", b64_json=coded("blue"), partial_image_index=0),
        _event("image_generation.partial_image", b64_json=coded("red"), partial_image_index=1),
        _event("image_generation.completed", b64_json=coded("red")),
    ]
    with reading(tmp_path, streaming(*events, done=False)) as proxy:
        body = {**PICTURE, "stream": True, "partial_images": 2}
        answer = httpx.post(f"{proxy.url}/v1/images/generations", json=body, timeout=20)
    assert coded("blue") in answer.text and coded("red") not in answer.text
    assert "content_policy_violation" in answer.text


def test_an_event_without_its_image_ends_the_stream(tmp_path: Path) -> None:
    event = _event("image_generation.completed", url="https://images.example/1.png")
    with reading(tmp_path, streaming(event, done=False)) as proxy:
        body = {**PICTURE, "stream": True}
        answer = httpx.post(f"{proxy.url}/v1/images/generations", json=body, timeout=20)
    assert "unreadable_answer" in answer.text and "images.example" not in answer.text


def test_an_image_that_a_model_answers_with_ends_the_answer(tmp_path: Path) -> None:
    call = {"type": "image_generation_call", "id": "ig_1", "status": "completed"}
    body = {"id": "r", "object": "response", "status": "completed", "model": "m"}
    for colour, status in (("blue", "completed"), ("red", "incomplete")):
        output = [{**call, "result": coded(colour)}]
        with reading(tmp_path, answering({**body, "output": output})) as proxy:
            asked = {"model": "m", "input": "draw a square"}
            answer = httpx.post(f"{proxy.url}/v1/responses", json=asked, timeout=20).json()
        assert answer["status"] == status
    assert answer["incomplete_details"] == {"reason": "content_filter"}
    assert coded("red") not in json.dumps(answer)


def test_a_call_that_has_drawn_nothing_yet_passes(tmp_path: Path) -> None:
    call = {"type": "image_generation_call", "id": "ig_1", "status": "in_progress", "result": None}
    body = {"id": "r", "object": "response", "status": "in_progress", "model": "m"}
    with reading(tmp_path, answering({**body, "output": [call]})) as proxy:
        asked = {"model": "m", "input": "draw a square"}
        assert httpx.post(f"{proxy.url}/v1/responses", json=asked, timeout=20).status_code == 200


def test_an_encoder_that_fails_lets_nothing_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no memory at /secret")

    with reading(tmp_path, drawing({"b64_json": coded("blue")})) as proxy:
        monkeypatch.setattr("classifiers.images.encoder.prepare", fail)
        answer = draw(proxy)
    assert answer.status_code == 502 and "secret" not in answer.text


def test_a_score_that_is_no_number_lets_nothing_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with reading(tmp_path, drawing({"b64_json": coded("blue")})) as proxy:
        monkeypatch.setattr(
            "classifiers.images.encoder.prepare",
            lambda *_: np.full((3, 8, 8), np.nan, np.float32),
        )
        assert draw(proxy).status_code == 502


def test_an_image_in_the_body_of_an_error_is_unscreened(tmp_path: Path) -> None:
    async def respond(request: UpstreamRequest, send: Send) -> None:
        body = {"error": {"message": "no", "b64_json": coded("red")}}
        await send_response(send, json.dumps(body).encode(), status=429)

    with reading(tmp_path, Upstream(respond)) as proxy:
        answer = draw(proxy)
    assert answer.status_code == 429 and answer.json()["guard"]["unscreened"] == ["pictures"]
