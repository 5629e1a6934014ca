"""Guards that decide on the last turn of a prompt, with the turns before it as context."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest

from steering.engines.transformers.engine import RowStart, TransformersEngine
from steering.hidden.rows import Reading, RowGuard
from steering.methods.steer import FOLLOW_UP, bank_of
from steering.prompt import Prompt
from tests.steering.engines.driver import NO_SAMPLING
from tests.steering.tiny import prompt, random_guard, tiny_model

BANK = bank_of([random_guard("g", pool=1), random_guard("h", sense=(0,), pool=2, seed=4)])
ASKED = Prompt(tuple(prompt(12, 2)))
TURN = 8
WATCHING = tuple(RowGuard(name, 1e9, 0.0, acts=False) for name in ("g", "h"))


@pytest.fixture
def engine() -> Iterator[TransformersEngine]:
    engine = TransformersEngine(tiny_model(), BANK, capacity=3)
    yield engine
    engine.close()


def read(
    engine: TransformersEngine, *prompts: Prompt, guards: Sequence[RowGuard] = WATCHING
) -> list[dict[str, Reading]]:
    engine.reset()
    engine.prefill([RowStart(each, guards, NO_SAMPLING) for each in prompts])
    return [engine.readings(row) for row in range(len(prompts))]


def in_parts(
    engine: TransformersEngine, most: int, guards: Sequence[RowGuard] = WATCHING
) -> dict[str, Reading]:
    engine.reset()
    engine.begin(RowStart(replace(ASKED, turn=TURN), guards, NO_SAMPLING))
    while engine.read(most) is None:
        pass
    return engine.readings(0)


def scores_of(engine: TransformersEngine, name: str) -> tuple[float, float]:
    """The scores of the turns before the last one, and of the last one."""
    last, before = read(engine, replace(ASKED, turn=TURN), Prompt(ASKED.tokens[:TURN]))
    return before[name].score, last[name].score


def test_guards_decide_from_the_turn_of_a_prompt_on(engine: TransformersEngine) -> None:
    whole, last, before = read(
        engine, ASKED, replace(ASKED, turn=TURN), Prompt(ASKED.tokens[:TURN])
    )
    scores = last["g"].score, before["g"].score
    assert whole["g"].score == pytest.approx(max(scores)) and scores[0] != pytest.approx(scores[1])


@pytest.mark.parametrize("most", [1, 3, 4, 5, 8, 12])
def test_the_same_in_parts(engine: TransformersEngine, most: int) -> None:
    (whole,) = read(engine, replace(ASKED, turn=TURN))
    parts = in_parts(engine, most)
    for name, reading in whole.items():
        assert parts[name].score == pytest.approx(reading.score, abs=1e-4)


@pytest.mark.parametrize("name", ["g", "h"])
@pytest.mark.parametrize("most", [None, 1, 3, 8, 12])
def test_a_turn_behind_one_that_is_over_the_threshold_has_a_lower_one(
    engine: TransformersEngine, name: str, most: int | None
) -> None:
    before, last = scores_of(engine, name)
    # the last turn is under the threshold, and over half of it
    threshold = min(before * 0.99, last * 1.5)
    assert before > threshold > last > threshold * FOLLOW_UP > 0, "take another seed"
    for factor, fires in ((1.0, True), (1.1 * before / threshold, False)):
        limit = threshold * factor
        guards = [replace(each, threshold=limit) for each in WATCHING if each.name == name]
        if most is None:
            (readings,) = read(engine, replace(ASKED, turn=TURN), guards=guards)
        else:
            readings = in_parts(engine, most, guards)
        reading = readings[name]
        assert reading.fired is fires
        assert reading.score == pytest.approx(last, abs=1e-4)
        assert reading.threshold == pytest.approx(limit * FOLLOW_UP if fires else limit)


def test_prompts_of_one_turn_keep_their_thresholds_beside_others(
    engine: TransformersEngine,
) -> None:
    guards = [replace(each, threshold=0.01) for each in WATCHING]
    other = Prompt(tuple(prompt(6, 5)))
    (alone,) = read(engine, other, guards=guards)
    beside, _ = read(engine, other, replace(ASKED, turn=TURN), guards=guards)
    for name, reading in alone.items():
        assert beside[name].threshold == reading.threshold == pytest.approx(0.01)
        assert (beside[name].fired, beside[name].position) == (reading.fired, reading.position)
        assert beside[name].score == pytest.approx(reading.score, abs=1e-4)
