"""A prompt that is read in parts: the answers and scores are those of the whole prompt."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from steering.engines.transformers import lanes
from steering.engines.transformers.engine import RowStart, TransformersEngine
from steering.engines.transformers.row_tokens import RowToken
from steering.engines.transformers.sampling import RowSampling
from steering.hidden.bank import HiddenBank
from steering.hidden.rows import RowGuard
from steering.methods.steer import bank_of
from tests.steering.engines.driver import generated, ids, serve, start
from tests.steering.tiny import CONFIGS, prompt, random_guard, tiny_model

BANK = bank_of(
    [
        random_guard("a"),
        random_guard("b", seed=1, pool=3, steps=1, sense=(0,), act=(3,)),
        random_guard("wide", seed=2, pool=30, sense=(1,), act=(1, 3)),
    ]
)
WATCH = RowGuard("a", threshold=1e6, strength=10.0)
LONG, SHORT = prompt(61, 5), prompt(9, 6)
LOGPROBS = RowSampling(top_logprobs=5)


def read(engine: TransformersEngine, begun: RowStart, parts: list[int]) -> RowToken:
    """The first token of a prompt that is read in these parts and, from then on, in the last."""
    engine.begin(begun)
    for size in [*parts, *[parts[-1]] * 100]:
        token = engine.read(size)
        if token is not None:
            return token
    raise AssertionError("the prompt does not end")


def answer(
    engine: TransformersEngine, begun: RowStart, parts: list[int] | None, count: int = 12
) -> list[RowToken]:
    """`count` tokens, of a prompt that is read in `parts`, or as a whole."""
    engine.reset()
    first = engine.prefill([begun])[0] if parts is None else read(engine, begun, parts)
    return [first, *(engine.decode()[0] for _ in range(count - 1))]


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model()


@pytest.fixture
def engine(model: Any) -> Any:
    engine = TransformersEngine(model, BANK, capacity=4)
    yield engine
    engine.close()


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("parts", [[1], [16], [7, 23]])
def test_parts_give_the_answer_of_the_whole_prompt(kind: str, parts: list[int]) -> None:
    model = tiny_model(kind)
    engine = TransformersEngine(model, HiddenBank(), capacity=2)
    expected = generated(model, LONG, 12)
    assert ids([answer(engine, start(LONG), parts)]) == [expected]


def test_one_part_is_bit_identical_to_the_whole_prompt(engine: TransformersEngine) -> None:
    begun = start(LONG, [replace(WATCH, threshold=-1.0)], LOGPROBS)
    whole = answer(engine, begun, None)
    scores = engine.readings(0)
    assert answer(engine, begun, [len(LONG)]) == whole
    assert engine.readings(0) == scores


@pytest.mark.parametrize("parts", [[1], [2], [16], [60], [59, 1]])
@pytest.mark.parametrize("name", ["a", "b", "wide"])
def test_scores_decisions_and_actions_are_those_of_the_whole_prompt(
    engine: TransformersEngine, name: str, parts: list[int]
) -> None:
    watch = RowGuard(name, threshold=1e6, strength=10.0, recheck=1e6)
    bare = answer(engine, start(LONG, [watch]), None)
    score = engine.readings(0)[name].score
    answer(engine, start(LONG, [watch]), None, count=1)
    prompt_score = engine.readings(0)[name].score
    assert answer(engine, start(LONG, [watch]), parts) == bare
    assert engine.readings(0)[name].score == pytest.approx(score, abs=1e-3)

    # just over and just under the statistic of the whole prompt
    for threshold, fired in ((prompt_score - 0.01, True), (prompt_score + 0.01, False)):
        begun = start(LONG, [RowGuard(name, threshold, strength=10.0)])
        whole, in_parts = answer(engine, begun, None), answer(engine, begun, parts)
        assert [token.flags.fired for token in in_parts] == [fired] * 12
        assert (engine.readings(0)[name].position == 0) is fired
        assert ids([in_parts]) == ids([whole])
        assert (ids([whole]) != ids([bare])) is fired


def test_no_guard_fires_before_the_prompt_ends(engine: TransformersEngine) -> None:
    engine.begin(start(LONG, [replace(WATCH, threshold=-1.0)]))
    for _ in range(6):
        assert engine.read(10) is None
        assert not engine.readings(engine.capacity)["a"].fired
    token = engine.read(10)
    assert token is not None and token.flags.fired


def test_the_first_token_alone_is_not_sensed(engine: TransformersEngine) -> None:
    engine.begin(start(LONG, [WATCH]))
    engine.read(1)
    assert engine.readings(engine.capacity)["a"].score == 0.0
    alone = start([7], [WATCH])
    whole = answer(engine, alone, None, count=1)
    score = engine.readings(0)
    assert answer(engine, alone, [5], count=1) == whole and engine.readings(0) == score


def test_rows_go_on_between_the_parts_and_keep_their_bits(engine: TransformersEngine) -> None:
    """Silence is identity and no cross-talk, while another row's prompt is being read."""

    def beside(carried: list[RowGuard]) -> list[list[tuple[Any, ...]]]:
        engine.reset()
        rows = [engine.prefill([start(SHORT, (), LOGPROBS), start(SHORT[:5], [WATCH], LOGPROBS)])]
        engine.begin(start(LONG, carried, LOGPROBS))
        for _ in range(4):
            assert engine.read(16) is None or len(rows) == 4
            rows.append(engine.decode())
        rows += [engine.decode() for _ in range(6)]
        return [[(token.token, token.logprob, token.top) for token in row] for row in rows]

    bare, silent = beside([]), beside([replace(WATCH, recheck=1e6)])
    steered = beside([replace(WATCH, threshold=-1.0)])
    assert silent == bare
    assert [row[:2] for row in steered] == [row[:2] for row in bare]
    assert steered[-1][2] != bare[-1][2]
    expected = generated(tiny_model(), SHORT, 11)
    assert [row[0][0] for row in bare] == expected


def test_a_prompt_that_is_read_counts_against_the_capacity(engine: TransformersEngine) -> None:
    engine.prefill([start(SHORT)] * 3)
    engine.begin(start(LONG))
    with pytest.raises(ValueError, match="5 rows do not fit a capacity of 4"):
        engine.prefill([start(SHORT)])
    with pytest.raises(ValueError, match="another prompt is being read"):
        engine.begin(start(LONG))
    assert engine.rows == 3


def test_an_abandoned_prompt_leaves_nothing_behind(engine: TransformersEngine) -> None:
    bare = answer(engine, start(LONG, (), LOGPROBS), None)
    engine.reset()
    poisoned = start(prompt(40, 1), [replace(WATCH, threshold=-1.0)])
    for _ in range(2):
        engine.begin(poisoned)
        engine.read(30)
        engine.abandon()
        engine.abandon()
    with pytest.raises(ValueError, match="no prompt is being read"):
        engine.read(1)
    engine.prefill([start(SHORT)] * 3)
    engine.drop([0, 1, 2])
    token = read(engine, start(LONG, (), LOGPROBS), [len(LONG)])
    assert [token, *(engine.decode()[0] for _ in range(11))] == bare


def test_nan_in_the_first_part_is_found(model: Any) -> None:
    model = tiny_model(seed=3)
    model.get_input_embeddings().weight.data[LONG[2]] = float("nan")
    engine = TransformersEngine(model, BANK, capacity=2)
    engine.prefill([start([4, 5], [WATCH])])
    assert read(engine, start(LONG, [WATCH]), [10]).flags.invalid
    assert [token.flags.invalid for token in engine.decode()] == [False, True]


def test_no_forward_is_larger_than_its_part(model: Any, engine: TransformersEngine) -> None:
    """Tokens, and the scores of attention: the part times the tokens before it."""
    shapes = []

    def record(_module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        shapes.append((tuple(kwargs["input_ids"].shape), tuple(kwargs["attention_mask"].shape)))

    handle = model.register_forward_pre_hook(record, with_kwargs=True)
    try:
        read(engine, start(LONG, [WATCH]), [16])
    finally:
        handle.remove()
    assert [ids for ids, _ in shapes] == [(1, 16), (1, 16), (1, 16), (1, 13)]
    assert [mask for _, mask in shapes] == [
        *((1, 1, 16, 16), (1, 1, 16, 32), (1, 1, 16, 48), (1, 1, 13, 61))
    ]


def test_rows_that_outgrow_their_lane_keep_their_answers(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lanes, "SHORTEST", 16)
    engine = TransformersEngine(model, BANK, capacity=4)
    prompts = [prompt(n, seed) for seed, n in enumerate((15, 3, 40, 16))]
    counts = [20, 64, 9, 33]
    rows, readings = serve(
        engine, [start(p, [WATCH]) for p in prompts], joins=[0, 0, 3, 5], tokens=counts
    )
    for row, tokens, count in zip(ids(rows), prompts, counts, strict=True):
        assert row == generated(model, tokens, count)
    assert all(reading["a"].valid for reading in readings)
    engine.close()


def test_a_sampled_row_keeps_its_settings_when_its_prompt_ends(engine: TransformersEngine) -> None:
    hot = RowSampling(temperature=1.5, top_p=0.95, seed=1234, top_logprobs=2)
    alone = answer(engine, start(LONG, (), hot), None)
    again = answer(engine, start(LONG, (), hot), [10])
    assert ids([again]) == ids([alone]) and {len(token.top) for token in again} == {2}
    assert torch.tensor([t.logprob for t in again]) == pytest.approx(
        torch.tensor([t.logprob for t in alone]), abs=1e-3
    )
