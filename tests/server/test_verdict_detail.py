"""How much of a verdict clients are told: in `guard serve`, with and without screens."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from guard.audit import AuditLog
from guard.config.schema import Config, load_config
from guard.errors import ConfigError
from tests.server.live_server import LiveServer, key, live_server, settings
from tests.server.proxy.answers.api_streams import events_of
from tests.server.screen_configs import screen_config, write_list

DETAILS = ["none", "outcome", "full"]
MODEL = '[[models]]\nname = "fake"\nsource = "fake"\n'
SCRIPTS = ["hi", "cut", "blocked", "failing", "midway", "the forbidden thing"]


def check_told(response: httpx.Response, bodies: list[Any], detail: str) -> None:
    """Each `guard` object in the bodies, and the headers, say no more than `detail`."""
    text = response.text
    headers = response.headers
    guards = [guard for body in bodies for guard in _guards(body)]
    assert headers["x-request-id"]
    if detail == "none":
        assert not guards and '"guard"' not in text
        assert "x-guard-verdict" not in headers and "x-guard-policy" not in headers
    else:
        assert guards and headers["x-guard-policy"]
    if detail == "outcome":
        assert all(set(guard) == {"request_id", "policy", "outcome"} for guard in guards)
    if detail == "full":
        assert all(guard["guards"][0]["threshold"] is not None for guard in guards)
    else:
        for word in ("threshold", "score", "books", "list"):
            assert word not in text, "no score, no threshold, no name of a guard"


def _guards(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        yield from ([value["guard"]] if "guard" in value else ())
        for name, item in value.items():
            yield from _guards(item) if name != "guard" else ()
    elif isinstance(value, list):
        for item in value:
            yield from _guards(item)


@contextmanager
def serving(folder: Path, detail: str, *, screens: bool) -> Iterator[LiveServer]:
    (folder / "config.toml").write_text(
        screen_config(source=write_list(folder), server=f'verdict = "{detail}"') + MODEL
    )
    config = load_config(folder / "config.toml")
    if not screens:
        raw = settings(verdict=detail, default_policy="strict")
        config = Config.model_validate(raw)
    with (
        AuditLog(folder / "audit.jsonl") as audit,
        live_server(config=config, audit=audit) as live,
    ):
        yield live


@pytest.mark.parametrize("screens", [False, True])
@pytest.mark.parametrize("detail", DETAILS)
def test_whole_and_streamed(tmp_path: Path, detail: str, screens: bool) -> None:
    with serving(tmp_path, detail, screens=screens) as live:
        for script in SCRIPTS:
            response = live.chat(script)
            check_told(response, [response.json()], detail)
            streamed = live.chat(script, stream=True, stream_options={"include_usage": True})
            is_stream = streamed.headers["content-type"].startswith("text/event-stream")
            events = [event for _, event in events_of(streamed.text)]
            check_told(streamed, events if is_stream else [streamed.json()], detail)
            if is_stream and "error" not in events[-1]:
                assert ("guard" in events[-2]) == (detail != "none"), "the usage chunk is the last"
    lines = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    assert len(lines) == 2 * len(SCRIPTS)
    assert all(line["guards"][0]["threshold"] is not None for line in lines), "the log has it all"


def test_a_key_has_a_setting_of_its_own() -> None:
    keys = [key("a", verdict="none"), key("b", verdict="full"), key("c")]
    raw = settings(verdict="outcome", default_policy="strict") | {"keys": keys}
    with live_server(raw) as live:
        for secret, detail in (("a", "none"), ("b", "full"), ("c", "outcome")):
            headers = {"authorization": f"Bearer {secret}"}
            body = {"model": "fake", "messages": [{"role": "user", "content": "hi"}]}
            response = live.post("/v1/chat/completions", json=body, headers=headers)
            check_told(response, [response.json()], detail)


def test_a_word_that_is_no_detail_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text('[server]\nverdict = "some"\n')
    with pytest.raises(ConfigError, match="server.verdict"):
        load_config(tmp_path / "config.toml")


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_the_message_of_a_policy_stands_for_an_answer_that_a_guard_cuts(path: str) -> None:
    raw = settings()
    raw["policies"]["strict"]["message"] = "No more of that."
    ask: dict[str, Any] = {"model": "fake", "guard": {"policy": "strict"}}
    ask |= {"prompt": "cut", "max_tokens": 9}
    if "chat" in path:
        ask = {"model": "fake", "guard": {"policy": "strict"}}
        ask["messages"] = [{"role": "user", "content": "cut"}]
    with live_server(raw) as live:
        (choice,) = live.post(path, json=ask).json()["choices"]
        assert choice.get("text", choice.get("message", {}).get("content")) == "No more of that."
        assert choice["finish_reason"] == "content_filter"
        events = [
            event for _, event in events_of(live.post(path, json=ask | {"stream": True}).text)
        ]
        (choice,) = events[-2]["choices"]
        assert choice["finish_reason"] == "content_filter"
        assert choice.get("text", choice.get("delta", {}).get("content")) == "No more of that."
        refused = live.chat("blocked", guard={"policy": "strict"})
        assert refused.json()["error"]["message"] == "No more of that."


@pytest.mark.parametrize("message", ["", "x" * 2001])
def test_the_message_of_a_policy_is_bounded(tmp_path: Path, message: str) -> None:
    text = f'[policies.p]\nguards = []\nmessage = "{message}"\n'
    (tmp_path / "config.toml").write_text(text)
    with pytest.raises(ConfigError, match="policies.p.message"):
        load_config(tmp_path / "config.toml")
