"""`previous_response_id`: conversations that the server keeps, for whom, and how many."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from server.endpoints.text.response_store import TURN_SIZE, ResponseStore, StoredResponse
from server.errors import UnknownResponse
from server.wire.schemas.conversation import ToolCall, Turn
from tests.server.endpoints.text.test_tools import RESPONSES_TOOLS
from tests.server.live_server import Launch, LiveServer, key, settings
from tests.server.screening.test_middleware import screened


def respond(live: LiveServer, text: Any = "hi", secret: str = "any", **options: Any) -> Any:
    return live.client(secret).responses.create(model="fake", input=text, **options)


def refusal(live: LiveServer, previous: str, secret: str = "any", **options: Any) -> Any:
    body = {"model": "fake", "input": "more", "previous_response_id": previous, **options}
    headers = {"Authorization": f"Bearer {secret}"}
    response = live.post("/v1/responses", json=body, headers=headers)
    assert response.status_code == 400
    error = response.json()["error"]
    assert (error["code"], error["param"]) == (
        "previous_response_not_found",
        "previous_response_id",
    )
    return error["message"]


def test_a_request_goes_on_from_a_response(launch: Launch) -> None:
    with launch(settings(response_store=10)) as live:
        first = respond(live, instructions="be kind")
        assert first.store is True
        second = respond(live, "more", previous_response_id=first.id, instructions="be short")
        assert second.previous_response_id == first.id
        *_, last = respond(live, "bye", previous_response_id=second.id, stream=True)
        respond(live, "again", previous_response_id=last.response.id)
        assert [(m["role"], m["content"]) for m in live.service.chats[1]] == [
            ("system", "be short"),
            ("user", "hi"),
            ("assistant", "Hello there!"),
            ("user", "more"),
        ]
        assert [m["content"] for m in live.service.chats[-1]] == [
            *("hi", "Hello there!", "more", "Hello there!", "bye", "Hello there!", "again")
        ]


def test_calls_are_kept_with_their_ids(launch: Launch) -> None:
    with launch(settings(response_store=10)) as live:
        first = respond(live, "call", tools=RESPONSES_TOOLS)
        call = first.output[-1]
        result = {"type": "function_call_output", "call_id": call.call_id, "output": "warm"}
        respond(live, [result], previous_response_id=first.id, tools=RESPONSES_TOOLS)
        _, called, told = live.service.chats[-1]
        assert called["content"] == "I look."
        assert called["tool_calls"][0]["function"]["arguments"] == {"city": "Paris"}
        assert (told["tool_call_id"], told["name"]) == (call.call_id, "weather")


def test_no_response_is_kept_unless_the_operator_says_so(live: LiveServer) -> None:
    answer = respond(live, store=True)
    assert answer.store is False
    assert "response_store" in refusal(live, answer.id)


def test_a_response_is_for_its_tenant_and_its_policy(launch: Launch) -> None:
    keys = [key("one", policies=["strict"]), key("two", tenant="other")]
    with launch({**settings(response_store=10), "keys": keys}) as live:
        first = respond(live, secret="one")
        assert "any more" in refusal(live, first.id, "two")
        assert "policy" in refusal(live, first.id, "one", guard={"policy": "strict"})
        assert respond(live, "more", "one", previous_response_id=first.id).output_text
        unstored = respond(live, secret="one", store=False)
        assert unstored.store is False
        refusal(live, unstored.id, "one")


def test_what_screens_may_change_is_not_kept(tmp_path: Path) -> None:
    with screened(tmp_path, server="response_store = 10") as (live, _):
        answer = respond(live, "silent")
        assert answer.store is False
        refusal(live, answer.id)


def stored(text: str) -> StoredResponse:
    return StoredResponse((Turn("user", (text,)),), "", "none")


def test_the_oldest_responses_make_room() -> None:
    store = ResponseStore(2, max_chars=2 * stored("").size + 100)
    for name in "abc":
        store.keep(name, stored(name))
    with pytest.raises(UnknownResponse):
        store.turns_before("a", "", "none")
    assert store.turns_before("b", "", "none") == stored("b").turns
    store.keep("d", stored("x" * 100))
    with pytest.raises(UnknownResponse):
        store.turns_before("c", "", "none")
    store.keep("e", stored("x" * 2000))
    for name in "de":
        with pytest.raises(UnknownResponse):
            store.turns_before(name, "", "none")


@pytest.mark.parametrize(
    "turn",
    [
        Turn("assistant", (), reasoning="r" * 900),
        Turn("user", (), name="n" * 900),
        Turn("tool", (), call_id="i" * 900),
        Turn("assistant", (), calls=(ToolCall("c", "f", {"k" * 400: ["v" * 500]}),)),
        Turn("assistant", (), calls=(ToolCall("c" * 900, "f", ""),)),
    ],
)
def test_all_that_a_turn_keeps_counts(turn: Turn) -> None:
    assert StoredResponse((turn,), "", "none").size >= 900 + TURN_SIZE


def test_many_small_turns_are_bounded() -> None:
    store = ResponseStore(10, max_chars=100 * TURN_SIZE)
    store.keep("many", StoredResponse((Turn("user", ("a",)),) * 100, "", "none"))
    with pytest.raises(UnknownResponse):
        store.turns_before("many", "", "none")
