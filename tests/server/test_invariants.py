"""What must always hold, end to end: a real model, service, server and client."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from guard.config.schema import load_config
from guard.errors import ConfigError
from server.app import create_app
from server.lifecycle.graceful import GracefulServer
from tests.server.conftest import listening
from tests.server.stand import NAN_LETTER, Stand, Workshop, save_nan_artifact

CHAT = "/v1/chat/completions"
CAPACITY, QUEUE = 8, 64


@dataclass
class Site:
    """A server over HTTP, and the stand behind it."""

    url: str
    server: GracefulServer
    stand: Stand

    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="any", max_retries=0, timeout=20)

    def chat(self, text: str = "hello", policy: str = "none", **more: Any) -> Any:
        options = {"max_tokens": 12, "temperature": 0, "model": "tiny"} | more
        return self.client().chat.completions.create(
            messages=[{"role": "user", "content": text}],
            extra_body={"guard": {"policy": policy}},
            **options,
        )

    def body(self, text: str = "hello", policy: str = "none", **more: Any) -> dict[str, Any]:
        messages = [{"role": "user", "content": text}]
        asked = {"model": "tiny", "messages": messages, "guard": {"policy": policy}}
        return asked | {"max_tokens": 12, "temperature": 0} | more

    def metrics(self) -> dict[tuple[str, tuple[str, ...]], float]:
        """Every sample by its name and the values of its labels, in the labels' order."""
        text = httpx.get(f"{self.url}/metrics").text
        return {
            (sample.name, tuple(value for _, value in sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def wait_until(self, holds: Callable[[], bool]) -> None:
        end = time.monotonic() + 10
        while not holds():
            assert time.monotonic() < end, "it never came to hold"
            time.sleep(0.01)


@contextmanager
def serving(stand: Stand, *, grace_s: float = 10.0) -> Iterator[Site]:
    services = {"tiny": stand.service}
    app = create_app(stand.config, services, metrics=stand.metrics)
    with listening(app, services, grace_s=grace_s) as (url, server):
        try:
            yield Site(url, server, stand)
        finally:
            stand.engine.go.set()


@pytest.fixture(scope="module")
def site(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """One for all tests that leave it as they found it."""
    folder = tmp_path_factory.mktemp("site")
    limits = {"max_batch": CAPACITY, "queue_limit": QUEUE, "max_body_bytes": 100_000}
    with workshop.stand(folder, **limits) as stand, serving(stand) as site:
        yield site


@pytest.fixture(autouse=True)
def _it_serves_afterwards(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "site" in request.fixturenames:
        site = request.getfixturevalue("site")
        assert site.chat().choices[0].finish_reason == "length"
        assert site.stand.service.queued() == 0
        site.wait_until(lambda: site.stand.engine.rows == 0)


def text_of(answer: Any) -> str:
    return str(answer.choices[0].message.content)


# -- 1: weights are never touched ---------------------------------------------------------------


def test_no_traffic_changes_a_weight(site: Site) -> None:
    before = site.stand.engine.weights()
    policies = ["none", "steer-always", "steer-late", "block-always", "open-other", "observe-late"]

    def one(index: int) -> None:
        text = f"{NAN_LETTER}{index}" if index % 5 == 0 else f"{index}"
        with httpx.Client(timeout=20) as client:
            client.post(
                f"{site.url}{CHAT}",
                json=site.body(text, policies[index % len(policies)], temperature=index % 2),
            )

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(one, range(24)))
    assert site.stand.engine.weights() == before


# -- 2 and 3: silence is identity, no cross-talk ------------------------------------------------


def test_answers_are_the_same_alone_and_among_rows_with_other_guards(site: Site) -> None:
    policies = ["none", "steer-never", "steer-always", "flag-always"]
    alone = {policy: site.chat("a question", policy, logprobs=True) for policy in policies}
    with ThreadPoolExecutor(8) as pool:
        asked = policies * 4
        crowd = list(pool.map(lambda p: site.chat("a question", p, logprobs=True), asked))
    for policy, answer in zip(asked, crowd, strict=True):
        assert text_of(answer) == text_of(alone[policy])
        ours, theirs = (
            [token.logprob for token in each.choices[0].logprobs.content]
            for each in (answer, alone[policy])
        )
        # batches of another size round otherwise; test_batching has one batch, and equal bits
        assert ours == pytest.approx(theirs, abs=1e-4)
    assert text_of(alone["none"]) == text_of(alone["steer-never"]) == text_of(alone["flag-always"])
    assert text_of(alone["steer-always"]) != text_of(alone["none"])


# -- 4: fail closed -----------------------------------------------------------------------------


def failure(ask: Callable[[], Any]) -> openai.APIStatusError:
    with pytest.raises(openai.APIStatusError) as caught:
        ask()
    error = caught.value
    assert set(error.response.json()["error"]) == {"message", "type", "param", "code"}
    assert error.response.headers["X-Request-Id"]
    return error


def test_a_guard_of_another_model_fails_closed_or_open_as_its_policy_says(site: Site) -> None:
    error = failure(lambda: site.chat(policy="steer-other"))
    assert (error.status_code, error.code) == (500, "guard_failed")
    assert "fitted on" in error.response.json()["guard"]["guards"][0]["error"]
    assert error.response.headers["X-Guard-Verdict"] == "error"
    answer = site.chat(policy="open-other")
    assert text_of(answer) == text_of(site.chat())
    assert answer.guard["outcome"] == "error"


def test_nan_in_the_activations_fails_closed_or_open_as_the_policy_says(site: Site) -> None:
    for stream in (False, True):
        error = failure(
            lambda stream=stream: site.chat(f"x{NAN_LETTER}", "steer-never", stream=stream)
        )
        assert (error.status_code, error.code) == (500, "guard_failed")
        assert error.response.json()["guard"]["outcome"] == "error"
    answer = site.chat(f"x{NAN_LETTER}", "open-never", logprobs=True, top_logprobs=2)
    assert answer.choices[0].finish_reason == "length"
    assert answer.guard["guards"][0]["score"] is None


def spoil(path: Path, how: str, fingerprint: str) -> None:
    content = path.read_bytes()
    if how == "truncated":
        path.write_bytes(content[:-7])
    elif how == "altered":
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif how == "nan":
        save_nan_artifact(path, fingerprint)
    elif how == "pickle":
        path.write_bytes(b"\x80\x04cos\nsystem\n.")
    else:
        path.unlink()


@pytest.mark.parametrize("how", ["truncated", "altered", "nan", "pickle", "gone"])
def test_a_damaged_artifact_is_told_at_once_and_never_served(
    workshop: Workshop, tmp_path: Path, how: str
) -> None:
    path = workshop.write_config(workshop.copy(tmp_path), max_batch=2)
    config = load_config(path)
    spoil(tmp_path / "always.safetensors", how, workshop.fingerprint)
    with pytest.raises(ConfigError, match="always.safetensors"):
        load_config(path)
    # damaged between the check and the load
    with workshop.stand(tmp_path, config) as stand, serving(stand) as site:
        for policy in ("steer-always", "observe-always"):
            error = failure(lambda policy=policy: site.chat(policy=policy))
            assert (error.status_code, error.code) == (500, "guard_failed")
        assert text_of(site.chat(policy="open-always")) == text_of(site.chat())
        assert site.chat(policy="steer-never").guard["outcome"] == "pass"
        listed = httpx.get(f"{site.url}/guard/v1/policies").json()["data"]
        models = {policy["id"]: policy["models"] for policy in listed}
        assert models["steer-always"] == [] and models["open-always"] == ["tiny"]


def test_a_blocked_prompt_is_a_bad_request_and_a_blocked_answer_is_cut(
    site: Site, workshop: Workshop
) -> None:
    late = workshop.late
    for stream in (False, True):
        error = failure(lambda stream=stream: site.chat(policy="block-always", stream=stream))
        assert (error.status_code, error.code) == (400, "content_filter")
        assert error.response.headers["X-Guard-Verdict"] == "blocked"
    whole = site.chat(late.prompt, logprobs=True)
    tokens = [token.token for token in whole.choices[0].logprobs.content]
    cut = site.chat(late.prompt, "block-late")
    assert cut.choices[0].finish_reason == "content_filter"
    assert text_of(cut) == "".join(tokens[: late.at - 1])
    assert cut.usage.completion_tokens == late.at - 1
    chunks = list(site.chat(late.prompt, "block-late", stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == text_of(cut)
    assert chunks[-1].choices[0].finish_reason == "content_filter"
    assert chunks[-1].guard["guards"][0]["position"] == late.at


# -- 5: everything is seen ----------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["steer-always", "observe-late", "flag-always", "steer-never"])
def test_response_audit_log_and_metrics_hold_the_same_numbers(
    site: Site, workshop: Workshop, policy: str
) -> None:
    before = site.metrics()
    answer = site.chat(workshop.late.prompt, policy)
    told = answer.guard
    (line,) = (line for line in site.stand.audit() if line["request_id"] == told["request_id"])
    assert {name: line[name] for name in told} == told
    (guard,) = told["guards"]

    def grown(name: str, *labels: str) -> float:
        after = site.metrics()[name, labels]
        return after - before.get((name, labels), 0.0)

    assert grown("inference_guard_verdicts_total", "tiny", told["outcome"], policy) == 1
    assert grown("inference_guard_score_count", guard["guard"], "tiny") == 1
    score = grown("inference_guard_score_sum", guard["guard"], "tiny")
    assert score == pytest.approx(guard["score"], rel=1e-9)
    if guard["fired"]:
        assert grown("inference_guard_fired_total", guard["action"], guard["guard"]) == 1
    else:
        assert ("inference_guard_fired_total", ("steer", "never")) not in site.metrics()
    tokens = grown("inference_guard_tokens_total", "completion", "tiny")
    assert tokens == answer.usage.completion_tokens == 12


def test_every_way_to_end_leaves_one_audit_line(site: Site) -> None:
    before = len(site.stand.audit())
    site.chat(n=3)
    failure(lambda: site.chat(policy="block-always"))
    failure(lambda: site.chat(policy="steer-other"))
    failure(lambda: site.chat(NAN_LETTER, "steer-never"))
    lines = site.stand.audit()[before:]
    assert Counter(line["outcome"] for line in lines) == {"pass": 3, "blocked": 1, "error": 2}
    assert len({line["request_id"] for line in lines}) == 6
    text = (site.stand.folder / "audit.jsonl").read_text()
    assert "hello" not in text


# -- 6: nothing is lost -------------------------------------------------------------------------


def test_a_client_that_hangs_up_while_streaming_frees_its_row(site: Site) -> None:
    before = len(site.stand.audit())
    engine, service = site.stand.engine, site.stand.service
    body = site.body(stream=True, max_tokens=200)
    engine.pace_s = 0.03  # it must not have ended by itself
    with httpx.stream("POST", f"{site.url}{CHAT}", json=body) as response:
        identity = response.headers["X-Request-Id"]
        next(response.iter_lines())
        engine.stalled.clear()
        engine.go.clear()
        site.wait_until(engine.stalled.is_set)
    engine.pace_s = 0.0
    steps = engine.steps
    site.wait_until(lambda: all(row.cancelled for row in service._running))
    engine.go.set()
    site.wait_until(lambda: engine.rows == 0)
    assert engine.steps == steps
    assert len(site.stand.audit()) == before + 1
    assert site.stand.audit()[-1]["request_id"] == identity


def test_200_requests_at_once_fill_the_queue_and_the_overflow_is_told_to_return(
    site: Site,
) -> None:
    before = len(site.stand.audit())
    site.stand.engine.go.clear()

    async def flood() -> list[httpx.Response]:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(timeout=30, limits=limits) as client:
            bodies = [site.body(f"question {i}", max_tokens=2) for i in range(200)]
            work = [
                asyncio.create_task(client.post(f"{site.url}{CHAT}", json=body)) for body in bodies
            ]
            turned_away = 200 - QUEUE - CAPACITY
            while sum(task.done() for task in work) < turned_away:
                await asyncio.sleep(0.01)
            site.stand.engine.go.set()
            return list(await asyncio.gather(*work))

    responses = asyncio.run(flood())
    assert Counter(r.status_code for r in responses) == {
        200: QUEUE + CAPACITY,
        429: 200 - QUEUE - CAPACITY,
    }
    for response in responses:
        if response.status_code == 429:
            assert int(response.headers["Retry-After"]) >= 1
            assert response.json()["error"]["code"] == "rate_limit_exceeded"
        else:
            assert response.json()["usage"]["completion_tokens"] == 2
    assert len(site.stand.audit()) == before + QUEUE + CAPACITY


def test_a_failed_step_is_a_server_error_for_its_batch_alone(site: Site) -> None:
    site.stand.engine.faults.append(RuntimeError("secret of the device"))
    error = failure(lambda: site.chat(policy="observe-always"))
    assert (error.status_code, error.code) == (500, "engine_failed")
    assert "secret" not in error.response.text
    assert site.stand.audit()[-1]["outcome"] == "error"


@pytest.mark.parametrize("stream", [False, True])
def test_a_server_that_stops_ends_its_answers_and_keeps_their_audit_lines(
    workshop: Workshop, tmp_path: Path, stream: bool
) -> None:
    answers: list[httpx.Response] = []
    with workshop.stand(tmp_path, max_batch=2) as stand:
        with serving(stand, grace_s=0.2) as site:

            def ask() -> None:
                body = site.body(stream=stream, max_tokens=200)
                answers.append(httpx.post(f"{site.url}{CHAT}", json=body, timeout=20))

            threads = [threading.Thread(target=ask) for _ in range(5)]
            stand.engine.go.clear()
            for thread in threads:
                thread.start()
            site.wait_until(lambda: len(stand.service._open) == 5)
            stand.engine.pace_s = 0.05  # no answer is over when the grace is
            stand.engine.go.set()
            site.wait_until(lambda: stand.engine.rows == 2)
            site.server.should_exit = True
            for thread in threads:
                thread.join(15)
        assert not stand.service.ready()
        assert len(answers) == 5
        for answer in answers:
            if answer.status_code == 200:
                assert stream
                *_, last, empty = answer.text.split("\n\n")
                error = json.loads(last.removeprefix("data: "))
                assert empty == "" and "[DONE]" not in answer.text
            else:
                assert answer.status_code == 503
                error = answer.json()
            assert error["error"]["code"] == "service_unavailable"
            assert error["guard"]["outcome"] == "error"
        assert Counter(answer.status_code for answer in answers)[503] == (3 if stream else 5)
        lines = stand.audit()
    told = {answer.headers["X-Request-Id"] for answer in answers}
    assert {line["request_id"] for line in lines} == told and len(lines) == 5
    assert {line["outcome"] for line in lines} == {"error"}


# -- hostile and wrong requests -----------------------------------------------------------------

DEEP = "[" * 20_000 + "]" * 20_000
GOOD = '{"role": "user", "content": "hi"}'


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, "invalid_json"),
        (b'{"model": "tiny", "messages": [{"role": "user", "content": "\xff\xfe"}]}', 400, None),
        (f'{{"model": "tiny", "messages": {DEEP}}}'.encode(), 400, "invalid_json"),
        (b'{"model": "tiny", "messages": [' + b"[" * 90 + b"]" * 90 + b"]}", 400, None),
        (b'{"model": "tiny", "messages": [{"role": "user", "content": "\\ud800"}]}', 400, None),
        (b'{"model": 7, "messages": [' + GOOD.encode() + b"]}", 400, "invalid_parameter"),
        (b'{"model": "tiny", "messages": "hi"}', 400, "invalid_parameter"),
        (b'{"model": "tiny", "messages": []}', 400, "invalid_parameter"),
        (b'{"model": "tiny", "messages": [{"role": "system", "content": "x"}]}', 400, None),
        (b'{"model": "tiny", "messages": [' + GOOD.encode() + b'], "n": 1e999}', 400, None),
        (b'{"model": "gpt-9", "messages": [' + GOOD.encode() + b"]}", 404, "model_not_found"),
        (
            b'{"model": "tiny", "guard": {"policy": "x"}, "messages": [' + GOOD.encode() + b"]}",
            400,
            "unknown_policy",
        ),
        (
            b'{"model": "tiny", "messages": [{"role": "user", "content": "' + b"x" * 300 + b'"}]}',
            400,
            "context_length_exceeded",
        ),
        (b" " * 100_001, 413, "request_too_large"),
    ],
)
def test_wrong_and_hostile_bodies_are_told_what_is_wrong(
    site: Site, body: bytes, status: int, code: str | None
) -> None:
    headers = {"Content-Type": "application/json"}
    response = httpx.post(f"{site.url}{CHAT}", content=body, headers=headers, timeout=10)
    assert response.status_code == status
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    if code is not None:
        assert error["code"] == code


def test_texts_that_are_odd_but_sound_are_answered(site: Site) -> None:
    for text in ("\u0000", "é😀", "<|assistant|></s>", " ", "\\ud800"):
        assert site.chat(text).choices[0].finish_reason == "length"
    with pytest.raises(openai.BadRequestError):
        site.client().completions.create(model="tiny", prompt=[[5, 10_000]])


# -- sampling -----------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"temperature": 1, "seed": 3}, {"top_p": 0.5, "seed": 1}])
@pytest.mark.parametrize("policy", ["none", "steer-always", "block-late"])
def test_a_stream_adds_up_to_the_answer_that_is_not_streamed(
    site: Site, options: dict[str, Any], policy: str
) -> None:
    options = {"max_tokens": 30, "logprobs": True, "top_logprobs": 2} | options
    whole = site.chat("tell", policy, **options)
    usage = {"include_usage": True}
    *chunks, last = site.chat("tell", policy, stream=True, stream_options=usage, **options)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == text_of(whole) and text
    told = [chunk.choices[0].logprobs for chunk in chunks]
    tokens = [token for each in told if each for token in each.content]
    assert tokens == whole.choices[0].logprobs.content
    assert last.usage.completion_tokens == whole.usage.completion_tokens == len(tokens)
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason
    assert sum(token.logprob <= 0 for token in tokens) == len(tokens)
    assert all(len(token.top_logprobs) == 2 for token in tokens)


def test_choices_of_a_seed_differ_from_each_other_and_repeat(site: Site) -> None:
    def texts() -> list[str]:
        answer = site.chat(n=3, seed=11, temperature=1, max_tokens=20)
        assert answer.usage.completion_tokens == 60
        return [choice.message.content for choice in answer.choices]

    assert texts() == texts() and len(set(texts())) == 3


def test_a_stop_string_across_tokens_is_never_seen(site: Site) -> None:
    whole = text_of(site.chat())
    stop = whole[3:7]
    for stream in (False, True):
        answer = site.chat(stop=[stop, "never there"], stream=stream)
        if stream:
            text = "".join(chunk.choices[0].delta.content or "" for chunk in answer)
        else:
            text = text_of(answer)
            assert answer.choices[0].finish_reason == "stop"
        assert text == whole[: whole.index(stop)]


def test_plain_completions_run_through_the_same_rows(site: Site) -> None:
    answer = site.client().completions.create(
        model="tiny",
        prompt=["ab", "cde"],
        max_tokens=5,
        temperature=0,
        logprobs=1,
        extra_body={"guard": {"policy": "observe-always"}},
    )
    assert [len(choice.logprobs.tokens) for choice in answer.choices] == [5, 5]  # type: ignore[union-attr]
    for choice in answer.choices:
        assert choice.text == "".join(choice.logprobs.tokens)  # type: ignore[union-attr,arg-type]
    assert answer.guard["guards"][0]["fired"]  # type: ignore[attr-defined]
