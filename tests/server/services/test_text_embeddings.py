"""Embeddings between the steps of a running batch: cancelled, refused, failed, stopped."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from guard.errors import ServiceStopped, TooManyRequests
from server.errors import EngineFailed
from server.services.interface import EmbeddingRequest
from server.services.text_embeddings import batches
from tests.server.running_service import run, until
from tests.server.services.text_driver import QUEUE, read, request
from tests.server.tiny_text_service import RunningText


def embedding(text: str = "a tale") -> EmbeddingRequest:
    return EmbeddingRequest(request_id=text, inputs=[text], policy="none")


def test_a_client_that_is_gone_stops_nothing(running: RunningText) -> None:
    async def disconnect() -> None:
        running.engine.go.clear()
        (row,) = running.service.submit([request(running)])
        await until(running.engine.stalled.is_set)
        gone = [asyncio.create_task(running.service.embed(embedding(f"tale {n}"))) for n in "ab"]
        kept = asyncio.create_task(running.service.embed(embedding()))
        await asyncio.sleep(0.1)
        for task in gone:
            task.cancel()
        await asyncio.gather(*gone, return_exceptions=True)
        running.engine.go.set()
        made = await kept
        assert made.vectors.shape == (1, 32) and made.prompt_tokens == 6
        assert (await read(row)).finished.completion_tokens == 16
        assert running.service.ready() and running.service._places.taken == 0

    run(disconnect)
    outcomes = {verdict.request_id: verdict.outcome for verdict in running.verdicts}
    assert outcomes == {
        **{"tale a": "error", "tale b": "error"},
        **{"a tale": "pass", "none:hello": "pass"},
    }


def test_more_requests_than_places_are_refused(running: RunningText) -> None:
    async def crowd() -> None:
        running.engine.go.clear()
        (row,) = running.service.submit([request(running)])
        await until(running.engine.stalled.is_set)
        tasks = [asyncio.create_task(running.service.embed(embedding())) for _ in range(QUEUE)]
        await asyncio.sleep(0.1)
        with pytest.raises(TooManyRequests):
            await running.service.embed(embedding())
        running.engine.go.set()
        await asyncio.gather(*tasks, read(row))

    run(crowd)


def test_a_failure_is_an_error_in_the_records_and_the_service_goes_on(
    running: RunningText, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedder: Any = running.service._embeddings
    assert embedder is not None

    def fails(texts: Any) -> Any:
        raise RuntimeError("out of memory")

    async def fail() -> None:
        with monkeypatch.context() as patched:
            patched.setattr(embedder._embedder, "embed", fails)
            with pytest.raises(EngineFailed):
                await running.service.embed(embedding("lost"))
        assert np.isfinite((await running.service.embed(embedding())).vectors).all()

    run(fail)
    outcomes = [(verdict.request_id, verdict.outcome) for verdict in running.verdicts]
    assert outcomes == [("lost", "error"), ("a tale", "pass")]


def test_a_service_that_has_stopped_says_so(running: RunningText) -> None:
    async def stopped() -> None:
        running.service.close()
        with pytest.raises(ServiceStopped):
            await running.service.embed(embedding())

    run(stopped)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=30), st.integers(1, 64))
def test_batches_are_bounded_and_whole(lengths: list[int], most: int) -> None:
    made = [*batches(lengths, most)]
    assert sorted(row for batch in made for row in batch) == [*range(len(lengths))]
    for batch in made:
        assert len(batch) == 1 or max(lengths[row] for row in batch) * len(batch) <= most
