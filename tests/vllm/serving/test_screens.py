"""Screens of text inside vLLM's own server: one verdict of screens and guards, on every API."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

pytest.importorskip("vllm", reason="vLLM has an environment of its own: make test-vllm")

from openai import BadRequestError  # noqa: E402

from tests.vllm.checkpoint import CONFIG  # noqa: E402
from tests.vllm.standing import Stand, serving, words  # noqa: E402

MESSAGE = "That is not for here."
SCREENED = f"""
[[patterns]]
name = "topic"
source = "topic.toml"
[policies.shut]
guards = ["topic"]
action = "block"
message = "{MESSAGE}"
[policies.noted]
guards = ["firm", "topic"]
action = "steer"
screen = {{ actions = {{ topic = "flag" }} }}
[policies.masked]
guards = ["topic"]
action = "redact"
[policies.chosen]
guards = ["topic"]
action = "policy"
screen = {{ upstream_policy = "stop" }}
[policies.ended]
guards = ["firm"]
action = "block"
message = "{MESSAGE}"
"""
# of the model's own words, so that its answers have some of them
TOPIC = '[[words]]\nlabel = "TOPIC"\nwords = ["forbidden", {}]\n'


@pytest.fixture(scope="module")
def stand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    folder = tmp_path_factory.mktemp("screens")
    (folder / "topic.toml").write_text(TOPIC.format('"w999"'), "utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_ENABLE_RESPONSES_API_STORE", "1")
        with serving(folder, "--enable-scale-out", policies=CONFIG + SCREENED) as made:
            yield made


def post(
    stand: Stand, path: str, body: dict[str, Any], headers: dict[str, str] | None = None
) -> tuple[int, dict[str, str], bytes]:
    """Status, headers in small letters, and body."""
    headers = {"Content-Type": "application/json", **(headers or {})}
    call = Request(f"{stand.url}{path}", json.dumps(body).encode(), headers)
    try:
        with urlopen(call, timeout=60) as reply:
            told = {name.lower(): value for name, value in reply.headers.items()}
            return reply.status, told, reply.read()
    except HTTPError as refused:
        told = {name.lower(): value for name, value in refused.headers.items()}
        return refused.code, told, refused.read()


def line_of(stand: Stand, before: int) -> dict[str, Any]:
    """The one line that the audit log has more than `before`."""
    for _ in range(100):
        if len(lines := stand.audited()[before:]):
            time.sleep(0.2)
            (line,) = stand.audited()[before:]
            return line
        time.sleep(0.1)
    raise AssertionError(f"no line: {lines}")


APIS = {
    "/v1/chat/completions": lambda text: {
        "messages": [{"role": "user", "content": text}],
        "max_tokens": 4,
    },
    "/v1/completions": lambda text: {"prompt": text, "max_tokens": 4},
    "/v1/responses": lambda text: {"input": text, "max_output_tokens": 16},
    "/v1/messages": lambda text: {
        "messages": [{"role": "user", "content": text}],
        "max_tokens": 4,
    },
}


def asking(path: str, text: str, **more: Any) -> dict[str, Any]:
    return {"model": "tiny", "temperature": 0, **APIS[path](text), **more}


@pytest.mark.parametrize("path", APIS)
def test_a_blocked_request_is_an_error_of_its_api(stand: Stand, path: str) -> None:
    before = len(stand.audited())
    body = asking(path, "w5 forbidden", guard={"policy": "shut"})
    status, headers, raw = post(stand, path, body)
    reply = json.loads(raw)
    assert status == 400 and reply["error"]["message"] == MESSAGE
    assert (reply.get("type") == "error") == (path == "/v1/messages")
    assert headers["x-guard-policy"] == "shut" and headers["x-guard-verdict"] == "blocked"
    assert reply["guard"]["outcome"] == "blocked"
    assert line_of(stand, before)["guards"] == reply["guard"]["guards"]


@pytest.mark.parametrize("path", APIS)
@pytest.mark.parametrize("stream", [False, True])
def test_screens_and_guards_make_one_verdict(stand: Stand, path: str, stream: bool) -> None:
    before = len(stand.audited())
    body = asking(path, words(8) + " forbidden", stream=stream)
    status, headers, raw = post(stand, path, body, {"X-Guard-Policy": "noted"})
    assert status == 200 and headers["x-guard-policy"] == "noted"
    if stream:
        lines = raw.decode().splitlines()
        events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
        found = [event.get("guard") or event.get("response", {}).get("guard") for event in events]
        told = [guard for guard in found if guard][-1]
    else:
        told = json.loads(raw)["guard"]
        assert headers["x-guard-verdict"] == told["outcome"]
    assert [guard["guard"] for guard in told["guards"]] == ["firm", "topic"]
    assert told["guards"][1]["fired"] and told["outcome"] in {"flagged", "steered"}
    line = line_of(stand, before)
    assert line["guards"] == told["guards"] and line["outcome"] == told["outcome"]
    assert line["request_id"] == told["request_id"]


def test_a_policy_can_be_named_in_three_places_that_must_agree(stand: Stand) -> None:
    path = "/v1/completions"
    names: list[tuple[dict[str, Any], dict[str, str]]] = [
        ({"guard": {"policy": "watch"}}, {}),
        ({"vllm_xargs": {"guard_policy": "watch"}}, {}),
        ({}, {"X-Guard-Policy": "watch"}),
        (
            {"guard": {"policy": "watch"}, "vllm_xargs": {"guard_policy": "watch"}},
            {"X-Guard-Policy": "watch"},
        ),
    ]
    for more, headers in names:
        status, told, raw = post(stand, path, asking(path, words(3), **more), headers)
        assert status == 200 and json.loads(raw)["guard"]["policy"] == "watch"
        assert told["x-guard-policy"] == "watch"
    differing = [
        ({"guard": {"policy": "watch"}, "vllm_xargs": {"guard_policy": "firm"}}, {}),
        ({"guard": {"policy": "watch"}}, {"X-Guard-Policy": "firm"}),
        ({"vllm_xargs": {"guard_policy": "watch"}}, {"X-Guard-Policy": "firm"}),
    ]
    for more, headers in differing:
        status, _, raw = post(stand, path, asking(path, "w5", **more), headers)
        assert status == 400 and "several policies" in json.loads(raw)["error"]["message"]
    for wrong in ("watch", {"policy": 7}, {"policies": ["watch"]}, ["watch"]):
        status, _, raw = post(stand, path, asking(path, "w5", guard=wrong))
        assert status == 400 and json.loads(raw)["error"]["param"].startswith("guard")


def test_what_an_answer_may_not_say_is_not_said(stand: Stand) -> None:
    path = "/v1/completions"
    _, _, raw = post(stand, path, asking(path, words(8), max_tokens=12))
    answer = json.loads(raw)["choices"][0]["text"].split()
    (stand.folder / "topic.toml").write_text(TOPIC.format(f'"{answer[5]}"'), "utf-8")
    assert stand.reload()[0] == 200
    first = answer.index(answer[5])
    for stream in (False, True):
        before = len(stand.audited())
        body = asking(path, words(8), max_tokens=12, stream=stream, guard={"policy": "shut"})
        status, _, raw = post(stand, path, body)
        assert status == 200
        lines = raw.decode().splitlines() if stream else ["data: " + raw.decode()]
        events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
        choices = [choice for event in events for choice in event["choices"]]
        text = "".join(choice["text"] for choice in choices)
        assert answer[5] not in text.split() and text.endswith(MESSAGE)
        assert choices[-1]["finish_reason"] == "content_filter"
        said = text.removesuffix(MESSAGE).split()
        # a stream has left as far as it was not held back
        assert said == answer[: len(said)] and len(said) <= (first if stream else 0)
        line = line_of(stand, before)
        assert line["outcome"] == "blocked" and line["policy"] == "shut"
    body = asking(path, words(8), max_tokens=12, guard={"policy": "masked"})
    _, _, raw = post(stand, path, body)
    masked = json.loads(raw)
    assert answer[5] not in masked["choices"][0]["text"].split()
    assert masked["guard"]["outcome"] == "redacted"


def test_stored_answers_are_screened_when_they_are_fetched(stand: Stand) -> None:
    status, _, raw = post(stand, "/v1/responses", asking("/v1/responses", words(9), store=True))
    assert status == 200
    stored = json.loads(raw)
    (said,) = [part["text"] for item in stored["output"] for part in item["content"]]
    (stand.folder / "topic.toml").write_text(TOPIC.format(f'"{said.split()[3]}"'), "utf-8")
    assert stand.reload()[0] == 200
    for policy, shown in (("none", said), ("shut", MESSAGE)):
        call = Request(
            f"{stand.url}/v1/responses/{stored['id']}", headers={"X-Guard-Policy": policy}
        )
        with urlopen(call, timeout=60) as reply:
            fetched = json.loads(reply.read())
        assert [p["text"] for item in fetched["output"] for p in item["content"]] == [shown]


def test_a_screen_chooses_the_policy_of_the_guards(stand: Stand) -> None:
    path = "/v1/completions"
    ends = set()
    for number in range(6, 14):
        text = words(number) + " forbidden"
        _, _, bare = post(stand, path, asking(path, text, guard={"policy": "stop"}))
        _, _, raw = post(stand, path, asking(path, text, guard={"policy": "chosen"}))
        reply, alone = json.loads(raw), json.loads(bare)
        assert reply["choices"][0]["text"] == alone["choices"][0]["text"]
        assert {guard["guard"] for guard in reply["guard"]["guards"]} == {"firm", "topic"}
        ends.add(reply["choices"][0]["finish_reason"])
    assert ends == {"length", "content_filter"}


@pytest.mark.parametrize("path", APIS)
def test_a_guard_that_ends_an_answer_has_the_policys_message(stand: Stand, path: str) -> None:
    blocked = 0
    for number in range(6, 14):
        status, headers, raw = post(
            stand, path, asking(path, words(number), guard={"policy": "ended"})
        )
        assert status == 200
        reply = json.loads(raw)
        assert headers["x-guard-verdict"] == reply["guard"]["outcome"]
        assert (MESSAGE in raw.decode()) == (reply["guard"]["outcome"] == "blocked")
        blocked += MESSAGE in raw.decode()
        if MESSAGE in raw.decode():
            end = {
                "/v1/responses": reply.get("incomplete_details"),
                "/v1/messages": reply.get("stop_reason"),
            }.get(path) or reply["choices"][0]["finish_reason"]
            assert end in ("content_filter", "refusal", {"reason": "content_filter"})
    assert 0 < blocked < 8


def test_routes_that_no_screen_reads_are_refused_under_a_policy_of_screens(stand: Stand) -> None:
    shut = {"X-Guard-Policy": "shut"}
    tokens = {"token_ids": [5, 6], "sampling_params": {"max_tokens": 2}, "model": "tiny"}
    chats = [[{"role": "user", "content": "w5"}]]
    unread: dict[str, dict[str, Any]] = {
        "/inference/v1/generate": tokens,
        "/v1/chat/completions/batch": {"model": "tiny", "messages": chats, "max_tokens": 2},
        "/invocations": asking("/v1/completions", "w5"),
    }
    for path, body in unread.items():
        status, _, raw = post(stand, path, body, shut)
        assert status == 400 and b"has screens" in raw, (path, raw)
        status, _, raw = post(stand, path, body, {"X-Guard-Policy": "firm"})
        assert status == 200, (path, raw)


def test_beam_search_runs_under_the_default_policy_alone(stand: Stand) -> None:
    path = "/v1/completions"
    beams = asking(path, words(3), use_beam_search=True, n=2)
    assert post(stand, path, beams)[0] == 200
    for more in ({"guard": {"policy": "firm"}}, {"vllm_xargs": {"guard_policy": "firm"}}):
        status, _, raw = post(stand, path, beams | more)
        assert status == 400 and b"default policy" in raw


def test_moderations_are_of_the_screens(stand: Stand) -> None:
    body = {"input": ["w5", "w5 forbidden"]}
    status, _, raw = post(stand, "/v1/moderations", body)
    assert status == 200
    assert [result["flagged"] for result in json.loads(raw)["results"]] == [False, True]


def test_the_client_library_names_policies_as_everywhere(stand: Stand) -> None:
    extra = {"guard": {"policy": "shut"}}
    with pytest.raises(BadRequestError, match=MESSAGE) as refused:
        stand.client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "forbidden"}], extra_body=extra
        )
    assert refused.value.code == "content_filter"
