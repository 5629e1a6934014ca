"""What a line of the user does, with a server that has a fake model."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from server.chat.client import ChatClient, ChatError
from server.chat.conversation import Conversation
from server.chat.screen import Screen, plain, verdict_line
from server.chat.session import COMMANDS, Session
from tests.server.live_server import LiveServer, key, live_server, settings


class Chat:
    """A session, and what it has shown."""

    def __init__(self, url: str, api_key: str | None = None) -> None:
        self._out, self._err = io.StringIO(), io.StringIO()
        screen = Screen(
            Console(file=self._out, width=500, emoji=False),
            Console(file=self._err, width=500, emoji=False),
        )
        self.session = Session(ChatClient(url, api_key), Conversation("fake"), screen)

    def __call__(self, *lines: str) -> tuple[str, str]:
        """What answers and notes these lines have brought."""
        for stream in (self._out, self._err):
            stream.seek(0)
            stream.truncate()
        self.session.run(lines)
        return self._out.getvalue(), self._err.getvalue()


@pytest.fixture
def chat(live: LiveServer) -> Iterator[Chat]:
    chat = Chat(live.url)
    yield chat
    chat.session.client.close()


def asked(live: LiveServer, number: int = -1) -> Any:
    return live.service.submitted[number]


def test_an_answer_comes_with_its_verdict_below(live: LiveServer, chat: Chat) -> None:
    out, err = chat("hello")
    assert out.strip() and err.startswith("[none: ")
    assert asked(live).policy == "none" and asked(live).sampling.temperature == 0
    (turn,) = chat.session.conversation.turns
    assert (turn.question, turn.answer) == ("hello", out.removesuffix("\n"))
    assert turn.verdict is not None and turn.verdict["policy"] == "none"


def test_the_conversation_goes_on_and_begins_anew(chat: Chat) -> None:
    chat("/system Be brief.", "one", "two")
    said = chat.session.conversation.messages("three")
    assert [m["role"] for m in said] == ["system", *("user", "assistant") * 2, "user"]
    assert [m["content"] for m in said if m["role"] == "user"] == ["one", "two", "three"]
    chat("/reset", "/system")
    assert chat.session.conversation.messages("x") == [{"role": "user", "content": "x"}]


def test_policies_are_named_chosen_and_refused(live: LiveServer, chat: Chat) -> None:
    assert "none, strict, watch" in chat("/policy")[1]
    chat("/policy strict", "hello")
    assert asked(live).policy == "strict"
    _, err = chat("/policy nope")
    assert err == "error: there is no policy 'nope': there is none, strict, watch\n"
    assert chat.session.conversation.policy == "strict" and chat.session.screen.failed


def test_bare_asks_the_last_question_again_without_guards(live: LiveServer, chat: Chat) -> None:
    chat("/policy strict", "one", "two")
    turns = [*chat.session.conversation.turns]
    _, err = chat("/bare")
    assert asked(live).policy == "none" and asked(live, -2).policy == "strict"
    assert asked(live).prompt.tokens == asked(live, -2).prompt.tokens
    assert err.startswith("[none: ")
    assert chat.session.conversation.turns == turns
    assert "no answer yet" in Chat(live.url)("/bare")[1]


def test_a_chat_is_saved_once(chat: Chat, tmp_path: Path) -> None:
    path = tmp_path / "chat.json"
    chat("hello", f"/save {path}")
    saved = json.loads(path.read_text())
    assert saved["turns"][0]["question"] == "hello" and saved["turns"][0]["guard"]["policy"]
    for line, why in (
        (f"/save {path}", "is there already"),
        (f"/save {tmp_path}/no/x.json", "cannot be written"),
        ("/save", "name a file"),
    ):
        assert why in chat(line)[1]


@pytest.mark.parametrize("line", ["/bogus", "/", "/bare x", "/reset x", "x" * 100_001])
def test_bad_lines_are_refused_in_one_line(chat: Chat, line: str) -> None:
    out, err = chat(line)
    assert not out and err.startswith("error: ") and err.count("\n") == 1


def test_help_names_every_command_and_quit_leaves(chat: Chat) -> None:
    _, err = chat("/help", "/quit", "/bogus")
    assert all(f"/{name}" in err for name in COMMANDS) and "error" not in err


def test_errors_of_the_server_are_told_and_the_chat_goes_on(live: LiveServer, chat: Chat) -> None:
    _, err = chat("failing", "hello")
    assert err.count("error: ") == 1 and "[none: " in err
    assert [turn.question for turn in chat.session.conversation.turns] == ["hello"]


def test_a_stopped_answer_is_kept_as_far_as_it_came(
    chat: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: Any, **__: Any) -> Iterator[str]:
        yield "so far"
        raise KeyboardInterrupt

    monkeypatch.setattr(chat.session.client, "answer", stopped)
    out, err = chat("hello")
    assert (out, err) == ("so far\n", "[stopped]\n")
    assert chat.session.conversation.turns[0].answer == "so far"


def test_a_keyed_server_and_none_at_all() -> None:
    raw = settings()
    raw["keys"] = [key("alpha", policies=["strict"])]
    with live_server(raw) as live:
        assert "error: No API key" in Chat(live.url)("hello")[1]
        chat = Chat(f"{live.url}/v1/", "alpha")
        assert chat("hello")[1].startswith("[none: ")
        with pytest.raises(ChatError, match="no model 'other': it has fake"):
            chat.session.client.require_model("other")
    assert "cannot be reached" in Chat(live.url)("hello")[1]
    for url in ("localhost:8000", "ftp://x", "http://"):
        with pytest.raises(ChatError, match="is no URL"):
            ChatClient(url)


def test_a_terminal_obeys_nothing_of_an_answer() -> None:
    assert plain("a\x1b[2J\x07b\r\tc\n\u202e") == "a\ufffd[2J\ufffdb\ufffd\tc\n\ufffd"


def test_a_verdict_in_a_line() -> None:
    fired = {"guard": "g", "fired": True, "error": None, "action": "steer"}
    silent = {"guard": "s", "fired": False, "error": None, "action": "none"}
    failed = {"guard": "f", "fired": False, "error": "nan", "action": "none"}
    guards = [
        {**fired, "score": 0.875, "threshold": 0.5},
        {**silent, "score": 0.1, "threshold": 0.5},
        {**failed, "score": None, "threshold": 0.5},
    ]
    verdict = {"policy": "p", "outcome": "error", "guards": guards}
    assert verdict_line(verdict) == "p: error · g steer (0.88 over 0.50) · f failed: nan"
    assert verdict_line({"policy": "p", "outcome": "pass"}) == "p: pass"
    assert "nothing" in verdict_line(None)
