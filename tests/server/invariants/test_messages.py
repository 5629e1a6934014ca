"""A message in place of an answer, and turns of a chat, over HTTP in each API."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from guard.config.policy_schema import PolicyConfig
from guard.config.schema import load_config
from tests.server.invariants.text_server import CHAT, TextServer, serve_text
from tests.server.tiny_text_service import TinyTextModel

MESSAGE = "Not here: ask the library."


@pytest.fixture(scope="module")
def saying(
    tiny_model: TinyTextModel, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TextServer]:
    folder = tmp_path_factory.mktemp("saying")
    config = load_config(tiny_model.write_config(tiny_model.copy(folder)))
    policies = {
        "say": PolicyConfig(guards=("always",), action="say", message=MESSAGE),
        "turn": PolicyConfig(guards=("never",), action="observe", scope="turn"),
        "conversation": PolicyConfig(guards=("never",), action="observe"),
    }
    config = config.model_copy(update={"policies": config.policies | policies})
    with tiny_model.serve(folder, config) as running, serve_text(running) as server:
        yield server


def body(path: str, **options: Any) -> dict[str, Any]:
    asked: dict[str, dict[str, Any]] = {
        CHAT: {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 8},
        "/v1/completions": {"prompt": "hello", "max_tokens": 8},
        "/v1/responses": {"input": "hello", "max_output_tokens": 16},
        "/v1/messages": {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 8},
    }
    return {"model": "tiny", "guard": {"policy": "say"}, **asked[path], **options}


READ: dict[str, Any] = {
    CHAT: lambda b: (b["choices"][0]["message"]["content"], b["choices"][0]["finish_reason"]),
    "/v1/completions": lambda b: (b["choices"][0]["text"], b["choices"][0]["finish_reason"]),
    "/v1/responses": lambda b: (b["output"][0]["content"][0]["text"], b["status"]),
    "/v1/messages": lambda b: (b["content"][0]["text"], b["stop_reason"]),
}
ENDS = {"/v1/responses": "completed", "/v1/messages": "end_turn"}
GENERATED = {CHAT: "completion_tokens", "/v1/completions": "completion_tokens"}


@pytest.mark.parametrize("path", READ)
def test_whole_answers(saying: TextServer, path: str) -> None:
    response = httpx.post(f"{saying.url}{path}", json=body(path), timeout=20)
    answer = response.json()
    assert response.status_code == 200 and response.headers["X-Guard-Verdict"] == "said"
    assert READ[path](answer) == (MESSAGE, ENDS.get(path, "stop"))
    assert answer["usage"][GENERATED.get(path, "output_tokens")] == 0
    assert answer["guard"]["outcome"] == "said"
    assert [guard["action"] for guard in answer["guard"]["guards"]] == ["say"]


@pytest.mark.parametrize("path", READ)
def test_streams(saying: TextServer, path: str) -> None:
    with httpx.stream(
        "POST", f"{saying.url}{path}", json=body(path, stream=True), timeout=20
    ) as response:
        lines = [line[6:] for line in response.iter_lines() if line.startswith("data: {")]
    events = [json.loads(line) for line in lines]
    deltas = {
        CHAT: lambda e: e["choices"][0]["delta"].get("content", ""),
        "/v1/completions": lambda e: e["choices"][0]["text"],
        "/v1/responses": lambda e: e.get("delta", ""),
        "/v1/messages": lambda e: e["delta"]["text"] if "text" in e.get("delta", {}) else "",
    }
    assert "".join(map(deltas[path], events)) == MESSAGE
    ends = [event.get("response", event) for event in events]
    outcomes = {end["guard"]["outcome"] for end in ends if "guard" in end}
    assert outcomes == {"said"}


def test_scores_of_a_turn_leave_out_the_turns_before(saying: TextServer) -> None:
    def scores(first: str) -> tuple[float, float]:
        messages = [
            {"role": "user", "content": first},
            {"role": "assistant", "content": "an answer"},
            {"role": "user", "content": "hm"},
        ]
        verdicts = [
            httpx.post(f"{saying.url}{CHAT}", json=body(CHAT, messages=messages, guard=guard))
            for guard in ({"policy": "turn"}, {"policy": "conversation"})
        ]
        turn, whole = (each.json()["guard"]["guards"][0]["score"] for each in verdicts)
        return turn, whole

    pairs = [scores(text) for text in ("pack my box", "WALTZ, NYMPH", "0123456789", "{}[]()#$%")]
    assert all(turn <= whole for turn, whole in pairs)
    assert any(turn < whole for turn, whole in pairs)
