"""The one reader of request bodies: the same rules everywhere, one parse, one value."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import Request
from starlette.types import Receive, Scope, Send

import server.wire.body
import server.wire.forms
from guard.config.schema import load_config
from guard.errors import RequestError
from guard.plans.screens import TextPlans
from server.observe.metrics import Metrics
from server.observe.middleware import ExchangeMiddleware
from server.observe.recorder import Recorder
from server.screening.middleware import ScreenMiddleware, Screens
from server.screening.texts.screener import Screener
from server.wire.forms import read_object_or_form
from server.wire.replies import JSONReply
from server.wire.schemas.images import EditRequest
from server.wire.strict_json import MAX_DEPTH, parse_object, parse_value
from tests.server.live_server import live_server
from tests.server.proxy.screened import answering, post_raw
from tests.server.proxy.stand import proxied, served
from tests.server.screen_configs import screen_config, write_list

MODEL = '[[models]]\nname = "fake"\nsource = "fake"\n'
MESSAGE = '{"role": "user", "content": "hi"}'


def chat_body(more: str = "", message: str = MESSAGE) -> bytes:
    return f'{{"model": "fake", "messages": [{message}]{more}}}'.encode()


def nested(levels: int) -> str:
    return "[" * levels + "]" * levels


class Surfaces:
    """All that read bodies, by name: URLs, and the headers that choose the policy there."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.upstream = answering("ok")
        config = screen_config(source=write_list(folder))
        (folder / "server.toml").write_text(config + MODEL)
        bare = stack.enter_context(live_server())
        screened = stack.enter_context(live_server(config=load_config(folder / "server.toml")))
        port = stack.enter_context(served(self.upstream))
        proxy = stack.enter_context(proxied(folder, config, port))
        self.targets: dict[str, tuple[str, dict[str, str]]] = {
            "server without screens": (bare.url, {}),
            "server": (screened.url, {}),
            "server, policy without screens": (screened.url, {"x-guard-policy": "none"}),
            "proxy": (proxy.url, {}),
            "proxy, policy without screens": (proxy.url, {"x-guard-policy": "none"}),
        }

    def post(self, content: bytes, media: str = "application/json") -> dict[str, httpx.Response]:
        return {
            name: post_raw(url, content, media, **headers)
            for name, (url, headers) in self.targets.items()
        }


@pytest.fixture(scope="module")
def surfaces(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Surfaces]:
    with ExitStack() as stack:
        yield Surfaces(tmp_path_factory.mktemp("surfaces"), stack)


# -- the same rules everywhere ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "invalid_json"),
        (b"[]", "invalid_json"),
        (chat_body() + b" x", "invalid_json"),
        (chat_body(', "model": "other"'), "invalid_parameter"),
        (chat_body(', "guard": {"policy": "none", "policy": "p"}'), "invalid_parameter"),
        (chat_body(message=MESSAGE[:-1] + ', "role": "system"}'), "invalid_parameter"),
        (chat_body(', "\\ud800": 1, "\\ud800": 2'), "invalid_parameter"),
        (chat_body(', "temperature": NaN'), "invalid_json"),
        (chat_body(', "temperature": -Infinity'), "invalid_json"),
        (chat_body(', "temperature": 1e999'), "invalid_json"),
        (chat_body(', "seed": ' + "1" * 5000), "invalid_json"),
        (chat_body(f', "metadata": {nested(MAX_DEPTH + 1)}'), "invalid_json"),
        (chat_body(f', "metadata": {nested(5000)}'), "invalid_json"),
        (chat_body(f', "metadata": {nested(200_000)}'), "invalid_json"),
        (chat_body().replace(b"hi", b"\xff\xfe"), "invalid_json"),
        (chat_body().replace(b"hi", b"\\ud83d"), "invalid_json"),
        (chat_body().decode().encode("utf-16"), "invalid_json"),
        (b"\xef\xbb\xbf" + chat_body(), "invalid_json"),
    ],
)
def test_a_bad_body_is_refused_alike_whoever_reads_it(
    surfaces: Surfaces, content: bytes, code: str
) -> None:
    surfaces.upstream.requests.clear()
    responses = surfaces.post(content)
    refusals = {n: (r.status_code, r.json()["error"]["code"]) for n, r in responses.items()}
    assert refusals == dict.fromkeys(surfaces.targets, (400, code))
    errors = [response.json()["error"] for response in responses.values()]
    assert all(error == errors[0] for error in errors)
    assert set(errors[0]) == {"message", "type", "param", "code"}
    assert not surfaces.upstream.requests


@pytest.mark.parametrize("charset", ["latin-1", "utf-16"])
def test_another_encoding_is_refused_alike(surfaces: Surfaces, charset: str) -> None:
    for response in surfaces.post(chat_body(), f"application/json; charset={charset}").values():
        assert (response.status_code, response.json()["error"]["code"]) == (400, "invalid_json")
    for response in surfaces.post(chat_body(), "application/json; charset=UTF-8").values():
        assert response.status_code == 200


# -- one parse, one value -----------------------------------------------------------------------


class Calls:
    """Counts the calls of a function, and keeps what it returned."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function, self.results = function, list[Any]()

    def __call__(self, *arguments: Any) -> Any:
        self.results.append(self.function(*arguments))
        return self.results[-1]


@pytest.fixture
def parses(monkeypatch: pytest.MonkeyPatch) -> Calls:
    calls = Calls(parse_object)
    monkeypatch.setattr(server.wire.body, "parse_object", calls)
    return calls


def test_a_body_is_parsed_once(surfaces: Surfaces, parses: Calls) -> None:
    for name, (url, headers) in surfaces.targets.items():
        parses.results.clear()
        assert post_raw(url, chat_body(), **headers).status_code == 200
        assert len(parses.results) == 1, name


def test_a_moderation_is_parsed_once(surfaces: Surfaces, parses: Calls) -> None:
    for name in ("server", "proxy"):
        parses.results.clear()
        url, _ = surfaces.targets[name]
        assert httpx.post(f"{url}/v1/moderations", json={"input": "hi"}).status_code == 200
        assert len(parses.results) == 1, name


def test_the_endpoint_gets_what_the_screens_have_rewritten(tmp_path: Path) -> None:
    text = screen_config("redact", 'look = ["user"]', source=write_list(tmp_path))
    (tmp_path / "config.toml").write_text(text + MODEL)
    with live_server(config=load_config(tmp_path / "config.toml")) as live:
        assert live.chat("mail joe@home.com").status_code == 200
        (row,) = live.service.submitted
        assert bytes(row.prompt.tokens) == b"mail [EMAIL_1]"


class Behind:
    """The screening middleware around an endpoint that keeps the objects that it is given."""

    def __init__(self, folder: Path, action: str = "block", policy: str = "p") -> None:
        text = screen_config(action, source=write_list(folder)) + MODEL
        (folder / "config.toml").write_text(text.replace('policy = "p"', f'policy = "{policy}"'))
        config = load_config(folder / "config.toml")
        plans, metrics = TextPlans(config), Metrics()
        screens = Screens(
            plans,
            Screener(plans.cascade, plans.images),
            Recorder(metrics.verdicts, None),
        )
        self.values: list[dict[str, Any]] = []
        self.app = ExchangeMiddleware(
            ScreenMiddleware(self._endpoint, config, screens, None, lambda: config), metrics
        )

    async def _endpoint(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.values.append(await read_object_or_form(EditRequest, Request(scope, receive), 10_000))
        await JSONReply({"data": []})(scope, receive, send)

    def post(self, **options: Any) -> httpx.Response:
        async def through() -> httpx.Response:
            transport = httpx.ASGITransport(self.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://host") as client:
                return await client.post("/v1/images/edits", **options)

        return asyncio.run(through())


@pytest.mark.parametrize("policy", ["p", "none"])
def test_the_endpoint_gets_the_object_that_was_screened(
    tmp_path: Path, parses: Calls, policy: str
) -> None:
    behind = Behind(tmp_path, policy=policy)
    assert behind.post(json={"model": "fake", "prompt": "a cat"}).status_code == 200
    assert behind.values == parses.results
    assert behind.values[0] is parses.results[0]


@pytest.mark.parametrize("policy", ["p", "none"])
def test_the_endpoint_gets_the_form_that_was_screened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy: str
) -> None:
    calls = Calls(server.wire.forms.parse_form)
    monkeypatch.setattr(server.wire.forms, "parse_form", calls)
    behind = Behind(tmp_path, policy=policy)
    response = behind.post(data={"model": "fake", "n": "2"}, files={"other": (None, "x")})
    assert response.status_code == 200
    assert behind.values == [{"model": "fake", "n": 2, "other": "x"}]
    assert len(calls.results) == 1 and behind.values[0] is calls.results[0]


def test_a_body_that_was_read_does_not_open_other_media_types(tmp_path: Path) -> None:
    """The endpoint checks media type and origin although the body has been read."""
    behind = Behind(tmp_path)
    elsewhere = {"origin": "http://elsewhere.example"}
    refused = behind.post(files={"model": (None, "fake")}, headers=elsewhere)
    assert not behind.values
    assert (refused.status_code, refused.json()["error"]["code"]) == (415, "unsupported_media_type")


# -- the parser ---------------------------------------------------------------------------------


def test_nesting_up_to_the_limit_is_read() -> None:
    assert parse_object(f'{{"a": {nested(MAX_DEPTH)}}}'.encode())
    wide = ", ".join([nested(MAX_DEPTH - 1)] * 3)
    assert len(parse_object(f'{{"a": [{wide}]}}'.encode())["a"]) == 3
    with pytest.raises(RequestError, match=f"more than {MAX_DEPTH} deep"):
        parse_object(f'{{"a": {nested(MAX_DEPTH + 1)}}}'.encode())


def test_brackets_in_strings_are_not_nesting() -> None:
    assert parse_object(b'{"a": "' + b"[{" * 500 + b'"}')


def test_whole_surrogate_pairs_are_characters() -> None:
    assert parse_object(b'{"a": "\\ud83d\\ude00 \\\\ud800"}') == {"a": "\U0001f600 \\ud800"}


def test_the_repeated_name_is_the_parameter() -> None:
    with pytest.raises(RequestError) as caught:
        parse_object(b'{"a": [{"b": 1, "c": 2, "b": 3}]}')
    assert caught.value.param == "b" and "more than once" in caught.value.message


def test_numbers_keep_their_values() -> None:
    assert parse_value("[1e308, -0.5, 1E-400, 9007199254740993]") == [
        *(1e308, -0.5, 0.0, 9007199254740993),
    ]
