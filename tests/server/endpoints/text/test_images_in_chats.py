"""Images in the messages of the three chat APIs: what reaches the model, and what is refused."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.server.live_server import LiveServer, live_server, settings


def png(width: int = 3, height: int = 2, **options: Any) -> bytes:
    """A picture whose pixels all differ."""
    count = width * height * 3
    pixels = np.arange(count, dtype=np.uint8).reshape(height, width, 3)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", **options)
    return file.getvalue()


def bomb() -> bytes:
    """A PNG of a few bytes whose header announces 60,000 by 60,000 pixels."""

    def chunk(name: bytes, body: bytes) -> bytes:
        check = zlib.crc32(name + body)
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", check)

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def animated() -> bytes:
    file = io.BytesIO()
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    frames[0].save(file, "WEBP", save_all=True, append_images=frames[1:])
    return file.getvalue()


def jpeg() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 4)).save(file, "JPEG")
    return file.getvalue()


def url_of(file: bytes, media_type: str = "image/png") -> str:
    return f"data:{media_type};base64,{base64.b64encode(file).decode()}"


def source_of(url: str) -> dict[str, str]:
    if not url.startswith("data:"):
        return {"type": "url", "url": url}
    head, data = url.split(",")
    return {"type": "base64", "media_type": head[5:].split(";")[0], "data": data}


Send = Callable[..., httpx.Response]


def chat(live: LiveServer, parts: list[str], role: str = "user", **options: Any) -> httpx.Response:
    content = [
        {"type": "image_url", "image_url": {"url": part, "detail": "low"}}
        if is_image(part)
        else {"type": "text", "text": part}
        for part in parts
    ]
    messages = [{"role": role, "content": content}, {"role": "user", "content": "hi"}]
    body = {"model": "fake", "messages": messages, **options}
    return live.post("/v1/chat/completions", json=body)


def responses(
    live: LiveServer, parts: list[str], role: str = "user", **options: Any
) -> httpx.Response:
    content = [
        {"type": "input_image", "image_url": part, "detail": "auto", "file_id": None}
        if is_image(part)
        else {"type": "input_text", "text": part}
        for part in parts
    ]
    items = [{"role": role, "content": content}, {"role": "user", "content": "hi"}]
    return live.post("/v1/responses", json={"model": "fake", "input": items, **options})


def messages(
    live: LiveServer, parts: list[str], role: str = "user", path: str = "", **options: Any
) -> httpx.Response:
    content = [
        {"type": "image", "source": source_of(part), "cache_control": {"type": "ephemeral"}}
        if is_image(part)
        else {"type": "text", "text": part}
        for part in parts
    ]
    turns = [{"role": role, "content": content}, {"role": "user", "content": "hi"}]
    limit = {} if path else {"max_tokens": 9}
    body = {"model": "fake", "messages": turns, **limit, **options}
    return live.post(f"/v1/messages{path}", json=body)


def is_image(part: str) -> bool:
    return part == "" or part.startswith(("data:", "http", "/", "file:"))


PLACES = {
    chat: "messages[0].content[{}].image_url.url",
    responses: "input[0].content[{}].image_url",
    messages: "messages[0].content[{}].source.data",
}
APIS = pytest.mark.parametrize("send", [chat, responses, messages])


@pytest.fixture(scope="module")
def _shared_seeing() -> Iterator[LiveServer]:
    with live_server(sees=True) as server:
        yield server


@pytest.fixture
def seeing(_shared_seeing: LiveServer) -> LiveServer:
    """A server whose model takes images."""
    _shared_seeing.service.submitted.clear()
    _shared_seeing.service.chats.clear()
    return _shared_seeing


def refusal(live: LiveServer, response: httpx.Response, param: str | None = None) -> str:
    """The message of a refused request, of which nothing has reached the model."""
    error = response.json()["error"]
    assert (response.status_code, error["type"]) == (400, "invalid_request_error")
    if param is not None:
        assert error["param"] == param
    assert not live.service.submitted
    message: str = error["message"]
    return message


@APIS
def test_images_and_texts_reach_the_model_in_their_order(seeing: LiveServer, send: Send) -> None:
    response = send(seeing, ["before", url_of(png(3, 2)), "between", url_of(png(5, 4)), "after"])
    assert response.status_code == 200
    (messages,) = seeing.service.chats
    parts = [part for message in messages for part in message["content"]]
    kinds = [part["type"] for part in parts if isinstance(part, dict)]
    assert kinds[:5] == ["text", "image", "text", "image", "text"]
    assert [parts[i]["text"] for i in (0, 2, 4)] == ["before", "between", "after"]
    assert np.array_equal(parts[1]["image"], np.arange(18, dtype=np.uint8).reshape(2, 3, 3))
    assert parts[3]["image"].shape == (4, 5, 3)
    (request,) = seeing.service.submitted
    assert b"[2 x 3]" in bytes(request.prompt.tokens)


@APIS
def test_a_stream_and_a_guarded_request_with_an_image(seeing: LiveServer, send: Send) -> None:
    response = send(seeing, [url_of(png())], stream=True, guard={"policy": "strict"})
    assert response.status_code == 200 and "there" in response.text
    assert seeing.service.submitted[0].policy == "strict"
    assert seeing.service.submitted[0].prompt.tokens.count(ord("[")) == 1


def test_tokens_of_images_are_counted(seeing: LiveServer) -> None:
    def counted(*parts: str) -> int:
        response = messages(seeing, list(parts), path="/count_tokens")
        return int(response.json()["input_tokens"])

    assert counted("x", url_of(png(3, 2))) == counted("x") + len("[2 x 3]\n")


@APIS
@pytest.mark.parametrize(
    ("file", "media_type", "reason"),
    [
        (png(40, 40)[:90], "image/png", "damaged"),
        (bomb(), "image/png", "60000 x 60000 pixels"),
        (animated(), "image/webp", "animated"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image/png", "no PNG, JPEG or WebP"),
        (b"GIF89a" + bytes(20), "image/png", "no PNG, JPEG or WebP"),
        (b"", "image/png", "no bytes"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_by_its_place(
    seeing: LiveServer, send: Send, file: bytes, media_type: str, reason: str
) -> None:
    response = send(seeing, ["x", url_of(file, media_type)])
    assert reason in refusal(seeing, response, PLACES[send].format(1))


@APIS
def test_wrong_base64_is_refused(seeing: LiveServer, send: Send) -> None:
    message = refusal(seeing, send(seeing, ["data:image/png;base64,a$b"]), PLACES[send].format(0))
    assert "base64" in message


@APIS
@pytest.mark.parametrize(
    "url", ["https://example.com/a.png", "http://127.0.0.1:1/a.png", "/etc/passwd", "file:///a"]
)
def test_nothing_is_fetched_or_opened(seeing: LiveServer, send: Send, url: str) -> None:
    param = PLACES[send].format(0).replace("data", "url")
    assert "send a data URL" in refusal(seeing, send(seeing, [url]), param)


@APIS
def test_an_empty_url_is_refused(seeing: LiveServer, send: Send) -> None:
    assert "empty" in refusal(seeing, send(seeing, [""]))


def test_a_type_that_is_not_that_of_the_bytes(seeing: LiveServer) -> None:
    """OpenAI's clients call most files JPEG: the bytes decide. Anthropic's API asks for it."""
    for send in (chat, responses):
        assert send(seeing, [url_of(png(), "image/jpeg")]).status_code == 200
        assert send(seeing, [url_of(jpeg(), "image/png")]).status_code == 200
    seeing.service.submitted.clear()
    response = messages(seeing, [url_of(png(), "image/jpeg")])
    assert "it is image/png" in refusal(seeing, response, PLACES[messages].format(0))
    for send in (chat, responses):
        refused = refusal(seeing, send(seeing, [url_of(b"<svg/>", "image/svg+xml")]))
        assert "image/svg+xml" in refused


@APIS
def test_one_pixel_is_an_image(seeing: LiveServer, send: Send) -> None:
    assert send(seeing, [url_of(png(1, 1))]).status_code == 200


@APIS
def test_twenty_images_are_too_many(seeing: LiveServer, send: Send) -> None:
    assert send(seeing, [url_of(png())] * 16).status_code == 200
    seeing.service.submitted.clear()
    where = "input" if send is responses else "messages"
    message = refusal(seeing, send(seeing, [url_of(png())] * 20), where)
    assert "has 20 images; this server takes at most 16" in message


def test_the_operator_sets_how_many() -> None:
    with live_server(settings(max_input_images=1), sees=True) as live:
        assert chat(live, [url_of(png())]).status_code == 200
        live.service.submitted.clear()
        assert "at most 1" in refusal(live, chat(live, [url_of(png())] * 2))


@APIS
@pytest.mark.parametrize("role", ["system", "assistant"])
def test_other_roles_bring_no_images(seeing: LiveServer, send: Send, role: str) -> None:
    if send is messages and role == "system":
        return  # this API has no such role
    message = refusal(seeing, send(seeing, [url_of(png())], role), PLACES[send].format(0))
    assert role in message


@APIS
def test_a_model_for_text_takes_no_image(live: LiveServer, send: Send) -> None:
    message = refusal(live, send(live, ["x", url_of(png())]), PLACES[send].format(1))
    assert "takes text alone with the engine 'fake'" in message
    # nor is a file decoded that it would not get
    refusal(live, send(live, ["x", url_of(bomb())]), PLACES[send].format(1))


def test_models_say_what_they_take(live: LiveServer, seeing: LiveServer) -> None:
    def modalities(server: LiveServer) -> Any:
        return httpx.get(f"{server.url}/v1/models/fake").json()["input_modalities"]

    assert modalities(live) == ["text"]
    assert modalities(seeing) == ["text", "image"]
