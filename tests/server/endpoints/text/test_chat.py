from __future__ import annotations

import threading
from typing import Any

import httpx
import openai
import pytest

from guard.errors import ContextExceeded, ServiceStopped, TooManyRequests
from server.endpoints import gateway
from server.wire.schemas.base import parse_request
from tests.server.live_server import LiveServer


def ask(live: LiveServer, text: str = "hi", **options: object) -> openai.types.chat.ChatCompletion:
    return live.client().chat.completions.create(  # type: ignore[call-overload,no-any-return]
        model="fake", messages=[{"role": "user", "content": text}], **options
    )


def test_answer_has_openais_shape_and_the_verdict_in_body_and_headers(live: LiveServer) -> None:
    raw = live.client().chat.completions.with_raw_response.create(
        model="fake",
        messages=[{"role": "user", "content": "hi"}],
        extra_body={"guard": {"policy": "strict"}},
    )
    answer = raw.parse()
    assert answer.object == "chat.completion"
    assert answer.choices[0].message.content == "Hello there!"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].logprobs is None
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (2, 3)
    assert answer.usage.total_tokens == 5
    (verdict,) = live.verdicts
    assert answer.model_extra is not None
    guard = answer.model_extra["guard"]
    assert guard == httpx.Response(200, json=verdict.as_dict()).json()
    assert guard == answer.choices[0].model_extra["guard"]  # type: ignore[index]
    assert raw.headers["X-Guard-Policy"] == guard["policy"] == "strict"
    assert raw.headers["X-Guard-Verdict"] == guard["outcome"] == "pass"
    assert raw.headers["X-Request-Id"] == guard["request_id"]


def test_every_sampling_parameter_reaches_the_service(live: LiveServer) -> None:
    ask(live, max_completion_tokens=7, temperature=0.5, top_p=0.25, seed=-3, stop=["a", "b"],
        logprobs=True, top_logprobs=2)  # fmt: skip
    (request,) = live.service.submitted
    sampling = request.sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.top_p) == (7, 0.5, 0.25)
    assert (sampling.seed, sampling.stop, sampling.top_logprobs) == (-3, ("a", "b"), 2)
    ask(live, max_tokens=9, stop="x")
    assert live.service.submitted[1].sampling.max_tokens == 9
    assert live.service.submitted[1].sampling.stop == ("x",)


def test_unset_max_tokens_is_what_the_context_and_the_server_leave(live: LiveServer) -> None:
    ask(live)
    ask(live, "x" * 4000)
    limits = [request.sampling.max_tokens for request in live.service.submitted]
    assert limits == [2048, 96]


def test_content_parts_and_roles_reach_the_template(live: LiveServer) -> None:
    live.client().chat.completions.create(
        model="fake",
        messages=[
            {"role": "developer", "content": "be kind"},
            {"role": "user", "content": [{"type": "text", "text": "a"}]},
            {"role": "assistant", "content": "b", "refusal": None},
            {"role": "user", "content": "c"},
        ],
    )
    assert bytes(live.service.submitted[0].prompt.tokens).decode() == "be kind\na\nb\nc"


def test_answers_can_be_sent_back_as_messages(live: LiveServer) -> None:
    message = ask(live).choices[0].message
    again = live.chat(messages=[message.model_dump(), {"role": "user", "content": "more"}])
    assert again.status_code == 200


def test_each_of_n_choices_has_its_own_row_seed_and_verdict(live: LiveServer) -> None:
    answer = ask(live, n=3, seed=5)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    ids = [choice.model_extra["guard"]["request_id"] for choice in answer.choices]  # type: ignore[index]
    assert len(set(ids)) == 3 and ids == [verdict.request_id for verdict in live.verdicts]
    assert [request.sampling.seed for request in live.service.submitted] == [5, 6, 7]
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (2, 9)


def test_seeds_of_choices_stay_in_range(live: LiveServer) -> None:
    ask(live, n=2, seed=2**63 - 1)
    assert live.service.submitted[1].sampling.seed == -(2**63)


def test_logprobs_hold_bytes_and_no_infinity(live: LiveServer) -> None:
    logprobs = ask(live, logprobs=True, top_logprobs=3).choices[0].logprobs
    assert logprobs is not None and logprobs.content is not None
    first = logprobs.content[0]
    assert (first.token, first.logprob, first.bytes) == ("Hello", -0.5, list(b"Hello"))
    assert [top.logprob for top in first.top_logprobs] == [-0.5, -2.0, -9999.0]
    assert first.top_logprobs[1].bytes is None
    assert [token.token for token in logprobs.content] == ["Hello", " there", "!"]
    bare = ask(live, logprobs=True).choices[0].logprobs
    assert bare is not None and bare.content is not None and bare.content[0].top_logprobs == []


def test_a_blocked_request_is_a_bad_request_with_its_verdict(live: LiveServer) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(live, "blocked")
    assert caught.value.code == "content_filter"
    response = caught.value.response
    assert response.headers["X-Guard-Verdict"] == "blocked"
    assert response.headers["X-Guard-Policy"] == "none"
    assert response.json()["guard"]["outcome"] == "blocked"


def test_an_output_cut_by_a_guard_ends_with_content_filter(live: LiveServer) -> None:
    assert ask(live, "cut").choices[0].finish_reason == "content_filter"
    assert ask(live, max_tokens=1).choices[0].finish_reason == "length"


def test_a_failed_guard_is_a_server_error_without_any_text(live: LiveServer) -> None:
    for text in ("failing", "midway"):
        with pytest.raises(openai.InternalServerError) as caught:
            ask(live, text)
        assert caught.value.code == "guard_failed"
        assert "Well" not in caught.value.response.text
        assert caught.value.response.headers["X-Guard-Verdict"] == "error"


def test_an_unforeseen_error_shows_no_details(live: LiveServer) -> None:
    for text in ("crash", "crash midway"):
        with pytest.raises(openai.InternalServerError) as caught:
            ask(live, text)
        assert "secret" not in caught.value.response.text
        assert caught.value.response.json()["error"]["type"] == "server_error"
        assert caught.value.response.headers["X-Request-Id"]
    assert ask(live).choices[0].message.content == "Hello there!"


def test_a_score_that_is_not_a_number_is_null(live: LiveServer) -> None:
    assert live.chat("nan").json()["guard"]["guards"][0]["score"] is None


def test_errors_of_submit_become_openais_exceptions(live: LiveServer) -> None:
    live.service.refusal = TooManyRequests("the queue is full", retry_after=1.2)
    with pytest.raises(openai.RateLimitError) as limited:
        ask(live)
    assert limited.value.response.headers["Retry-After"] == "2"
    live.service.refusal = ContextExceeded("too long", param="messages")
    with pytest.raises(openai.BadRequestError) as exceeded:
        ask(live)
    assert (exceeded.value.code, exceeded.value.param) == ("context_length_exceeded", "messages")
    live.service.refusal = ServiceStopped("shutting down")
    with pytest.raises(openai.InternalServerError) as stopped:
        ask(live)
    assert stopped.value.status_code == 503


def test_unknown_model_is_not_found(live: LiveServer) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        live.client().chat.completions.create(
            model="gpt-9", messages=[{"role": "user", "content": "x"}]
        )
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


@pytest.mark.parametrize(("count", "inline"), [(gateway.MANY, True), (gateway.MANY + 1, False)])
def test_many_messages_are_validated_beside_the_event_loop(
    live: LiveServer, monkeypatch: pytest.MonkeyPatch, count: int, inline: bool
) -> None:
    threads = []

    def parse(*arguments: Any) -> Any:
        threads.append(threading.current_thread())
        return parse_request(*arguments)

    monkeypatch.setattr(gateway, "parse_request", parse)
    for messages in ([{"role": "user", "content": "x"}], [{"role": "user", "content": ""}] * count):
        live.post("/v1/chat/completions", json={"model": "fake", "messages": messages})
    loop, other = threads
    assert (other is loop) is inline
    wrong = [{"role": "user", "content": "x"}] * count + [{"role": "user"}]
    response = live.post("/v1/chat/completions", json={"model": "fake", "messages": wrong})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == f"messages[{count}].content"
