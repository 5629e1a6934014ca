"""Guards on a caller's vision-language model: `model.generate(**processor(...))` as it is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from steering.engines.transformers.attachment import Attachment
from steering.engines.transformers.engine import RowStart
from steering.engines.transformers.sampling import RowSampling
from steering.hidden.rows import RowGuard
from steering.methods.steer import bank_of
from tests.steering.engines.driver import hooks_on, ids, serve
from tests.steering.engines.transformers.vision.running import Running
from tests.steering.engines.transformers.vision.tiny import FAMILIES, WIDTH, ask, greedy, image
from tests.steering.tiny import random_guard

BANK = bank_of([random_guard("a", width=WIDTH)])
FIRES = RowGuard("a", threshold=-1.0, strength=10.0)
SILENT = RowGuard("a", threshold=1e6, strength=10.0, recheck=1e6)
CHATS = [
    ask("What is on it?", image(20, 30, 1)),
    ask("Hello!"),
    ask("And on these two?", image(16, 16, 2), image(44, 20, 3)),
]


@pytest.fixture(scope="module", params=FAMILIES)
def running(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Running:
    return Running.of(request.param, tmp_path_factory.mktemp(request.param))


@contextmanager
def attached(model: Any, guard: RowGuard) -> Iterator[Attachment]:
    def fail(reason: str) -> None:
        raise AssertionError(reason)

    attachment = Attachment(model, BANK, [guard], lambda _: None, fail)
    try:
        yield attachment
    finally:
        attachment.remove()
    assert hooks_on(model) == 0


def served(running: Running, guard: RowGuard, tokens: int) -> tuple[list[list[int]], list[float]]:
    """The answers and the scores of the engine."""
    engine = running.engine(BANK)
    starts = [RowStart(running.prompt(chat), [guard], RowSampling()) for chat in CHATS]
    rows, readings = serve(engine, starts, tokens=tokens)
    engine.close()
    return ids(rows), [reading["a"].score for reading in readings]


@pytest.mark.parametrize("use_cache", [True, False], ids=["cache", "whole"])
def test_answers_and_scores_are_those_of_the_engine(running: Running, use_cache: bool) -> None:
    """Rows with and without images, padded on the left; also where each token runs all others."""
    inputs = running.tiny.inputs(*CHATS)
    settings = greedy(6) | {"use_cache": use_cache}
    length = inputs["input_ids"].shape[1]
    bare = running.model.generate(**inputs, **settings)
    for guard in (SILENT, replace(FIRES, recheck=None)):
        answers, scores = served(running, guard, 6)
        with attached(running.model, guard) as attachment:
            guarded = running.model.generate(**inputs, **settings)
            readings = [attachment.readings(row)["a"] for row in range(len(CHATS))]
        assert guarded[:, length:].tolist() == answers
        assert [reading.score for reading in readings] == pytest.approx(scores, rel=1e-3)
        assert [reading.fired for reading in readings] == [guard.threshold < 0] * len(CHATS)
        assert (guarded.tolist() == bare.tolist()) is (guard is SILENT)
