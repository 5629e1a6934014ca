"""Every verdict is recorded, once, and no request is lost."""

from __future__ import annotations

import asyncio
import json
import threading
from collections import Counter
from pathlib import Path

import httpx
import pytest

from tests.server.invariants.text_server import (
    CAPACITY,
    CHAT,
    QUEUE,
    TextServer,
    failure,
    serve_text,
)
from tests.server.tiny_text_service import NAN_LETTER, TinyTextModel


@pytest.mark.parametrize("policy", ["steer-always", "observe-late", "flag-always", "steer-never"])
def test_response_audit_log_and_metrics_hold_the_same_numbers(
    server: TextServer, tiny_model: TinyTextModel, policy: str
) -> None:
    before = server.metrics()
    answer = server.chat(tiny_model.late.prompt, policy)
    verdict = answer.guard
    (line,) = (
        line for line in server.running.audit() if line["request_id"] == verdict["request_id"]
    )
    assert {name: line[name] for name in verdict} == verdict
    (guard,) = verdict["guards"]

    def increase(name: str, *labels: str) -> float:
        after = server.metrics()[name, labels]
        return after - before.get((name, labels), 0.0)

    assert increase("inference_guard_verdicts_total", "tiny", verdict["outcome"], policy) == 1
    assert increase("inference_guard_score_count", guard["guard"], "tiny") == 1
    score = increase("inference_guard_score_sum", guard["guard"], "tiny")
    assert score == pytest.approx(guard["score"], rel=1e-9)
    if guard["fired"]:
        assert increase("inference_guard_fired_total", guard["action"], guard["guard"]) == 1
    else:
        assert ("inference_guard_fired_total", ("steer", "never")) not in server.metrics()
    tokens = increase("inference_guard_tokens_total", "completion", "tiny")
    assert tokens == answer.usage.completion_tokens == 12


def test_every_end_of_a_row_leaves_one_audit_line(server: TextServer) -> None:
    before = len(server.running.audit())
    server.chat(n=3)
    failure(lambda: server.chat(policy="block-always"))
    failure(lambda: server.chat(policy="steer-other"))
    failure(lambda: server.chat(NAN_LETTER, "steer-never"))
    lines = server.running.audit()[before:]
    assert Counter(line["outcome"] for line in lines) == {"pass": 3, "blocked": 1, "error": 2}
    assert len({line["request_id"] for line in lines}) == 6
    text = (server.running.folder / "audit.jsonl").read_text()
    assert "hello" not in text


def test_a_disconnect_during_a_stream_frees_its_row(server: TextServer) -> None:
    before = len(server.running.audit())
    engine, service = server.running.engine, server.running.service
    body = server.body(stream=True, max_tokens=200)
    engine.pace_s = 0.03  # it must not have ended by itself
    with httpx.stream("POST", f"{server.url}{CHAT}", json=body) as response:
        identity = response.headers["X-Request-Id"]
        next(response.iter_lines())
        engine.stalled.clear()
        engine.go.clear()
        server.wait_until(engine.stalled.is_set)
    engine.pace_s = 0.0
    steps = engine.steps
    server.wait_until(lambda: all(row.cancelled for row in service._running))
    engine.go.set()
    server.wait_until(lambda: engine.rows == 0)
    assert engine.steps == steps
    assert len(server.running.audit()) == before + 1
    assert server.running.audit()[-1]["request_id"] == identity


def test_200_requests_at_once_fill_the_queue_and_the_others_get_retry_after(
    server: TextServer,
) -> None:
    before = len(server.running.audit())
    server.running.engine.go.clear()

    async def flood() -> list[httpx.Response]:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(timeout=30, limits=limits) as client:
            bodies = [server.body(f"question {i}", max_tokens=2) for i in range(200)]
            work = [
                asyncio.create_task(client.post(f"{server.url}{CHAT}", json=body))
                for body in bodies
            ]
            turned_away = 200 - QUEUE - CAPACITY
            while sum(task.done() for task in work) < turned_away:
                await asyncio.sleep(0.01)
            server.running.engine.go.set()
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
    assert len(server.running.audit()) == before + QUEUE + CAPACITY


def test_a_failed_step_is_a_server_error_for_its_batch_alone(server: TextServer) -> None:
    server.running.engine.faults.append(RuntimeError("secret of the device"))
    error = failure(lambda: server.chat(policy="observe-always"))
    assert (error.status_code, error.code) == (500, "engine_failed")
    assert "secret" not in error.response.text
    assert server.running.audit()[-1]["outcome"] == "error"


@pytest.mark.parametrize("stream", [False, True])
def test_a_server_that_stops_ends_its_answers_and_keeps_their_audit_lines(
    tiny_model: TinyTextModel, tmp_path: Path, stream: bool
) -> None:
    answers: list[httpx.Response] = []
    with tiny_model.serve(tmp_path, max_batch=2) as running:
        with serve_text(running, grace_s=0.2) as server:

            def ask() -> None:
                body = server.body(stream=stream, max_tokens=200)
                answers.append(httpx.post(f"{server.url}{CHAT}", json=body, timeout=20))

            threads = [threading.Thread(target=ask) for _ in range(5)]
            running.engine.go.clear()
            for thread in threads:
                thread.start()
            server.wait_until(lambda: len(running.service._open) == 5)
            running.engine.pace_s = 0.05  # no answer is over when the grace is
            running.engine.go.set()
            server.wait_until(lambda: running.engine.rows == 2)
            server.server.should_exit = True
            for thread in threads:
                thread.join(15)
        assert not running.service.ready()
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
        lines = running.audit()
    ids = {answer.headers["X-Request-Id"] for answer in answers}
    assert {line["request_id"] for line in lines} == ids and len(lines) == 5
    assert {line["outcome"] for line in lines} == {"error"}
