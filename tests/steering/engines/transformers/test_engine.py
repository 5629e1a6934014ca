"""Invariants of the engine: weights untouched, silence is identity, rows are independent."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from steering.engines.transformers.engine import RowStart, TransformersEngine
from steering.engines.transformers.row_tokens import RowToken
from steering.engines.transformers.sampling import RowSampling
from steering.hidden.bank import HiddenBank
from steering.hidden.rows import RowGuard
from steering.methods.steer import bank_of
from steering.prompt import Media, Prompt
from tests.steering.engines.driver import generated, hooks_on, ids, serve, start, weights_hash
from tests.steering.tiny import VOCABULARY, prompt, random_guard, tiny_model

BANK = bank_of([random_guard("a"), random_guard("b", seed=1, pool=3, steps=1, act=(3,))])
FIRES = RowGuard("a", threshold=-1.0, strength=10.0)
SILENT = RowGuard("a", threshold=1e6, strength=10.0, recheck=1e6)
WATCHES = replace(FIRES, acts=False, recheck=-1.0)
PROMPTS = [prompt(n, seed) for seed, n in enumerate((6, 17, 11, 3))]
LOGPROBS = RowSampling(top_logprobs=5)

Rows = list[list[RowToken]]


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model()


@pytest.fixture
def engine(model: Any) -> Iterator[TransformersEngine]:
    engine = TransformersEngine(model, BANK, capacity=4)
    yield engine
    engine.close()


def batch(engine: TransformersEngine, carried: list[list[RowGuard]]) -> Rows:
    engine.reset()
    rows = zip(PROMPTS, carried, strict=True)
    return serve(engine, [start(p, guards, LOGPROBS) for p, guards in rows])[0]


def content(row: list[RowToken]) -> list[tuple[Any, ...]]:
    """Tokens and their log-probabilities, bit for bit."""
    return [(token.token, token.logprob, token.top) for token in row]


def test_weights_are_never_touched(model: Any, engine: TransformersEngine) -> None:
    before = weights_hash(model)
    other = RowGuard("b", threshold=-1.0, strength=3.0, recheck=-1.0)
    rows, _ = serve(
        engine,
        [start(PROMPTS[i], guards) for i, guards in enumerate([[FIRES, other], [], [other], []])],
        joins=[0, 0, 2, 4],
        tokens=[12, 3, 9, 5],
    )
    assert any(token.flags.fired for row in rows for token in row)
    assert weights_hash(model) == before


@pytest.mark.parametrize("quiet", [[SILENT], [WATCHES]], ids=["silent", "observe"])
def test_rows_that_do_not_act_are_bit_identical_to_bare_ones(
    engine: TransformersEngine, quiet: list[RowGuard]
) -> None:
    bare = batch(engine, [[], [], [], []])
    guarded = batch(engine, [quiet, [FIRES], quiet, []])
    for row in (0, 2, 3):
        assert content(guarded[row]) == content(bare[row])
    assert content(guarded[1]) != content(bare[1]), "nothing was steered: the test is empty"


def test_a_row_does_not_depend_on_what_its_neighbours_carry(engine: TransformersEngine) -> None:
    other = RowGuard("b", threshold=-1.0, strength=10.0, recheck=-1.0)
    first = batch(engine, [[FIRES], [], [SILENT], []])
    second = batch(engine, [[FIRES], [other, FIRES], [SILENT], [other]])
    assert content(first[0]) == content(second[0]) and content(first[2]) == content(second[2])
    assert content(first[1]) != content(second[1]) and content(first[3]) != content(second[3])


def test_a_slot_carries_nothing_over_to_the_next_request(engine: TransformersEngine) -> None:
    bare = batch(engine, [[], [], [], []])
    serve(engine, [start(p, [FIRES]) for p in PROMPTS])
    rows, readings = serve(engine, [start(p, (), LOGPROBS) for p in PROMPTS])
    assert [content(row) for row in rows] == [content(row) for row in bare]
    assert readings == [{}, {}, {}, {}]


def test_recheck_fires_at_the_generated_token_where_the_score_passes(
    engine: TransformersEngine,
) -> None:
    """A threshold between two scores of an observed row must fire at the later one."""
    watch = RowGuard("a", threshold=1e6, strength=10.0, recheck=1e6)
    engine.prefill([start(PROMPTS[2], [watch])])
    scores = [engine.readings(0)["a"].score]
    for _ in range(20):
        engine.decode()
        scores.append(engine.readings(0)["a"].score)
    assert scores == sorted(scores), "the statistic only grows"
    at = max(range(1, 21), key=lambda n: scores[n] - scores[n - 1])
    limit = (scores[at] + scores[at - 1]) / 2
    assert at > 1 and scores[at - 1] < limit < scores[at]

    engine.reset()
    bare, _ = serve(engine, [start(PROMPTS[2])], tokens=21)
    guard = replace(watch, recheck=limit)
    rows, readings = serve(engine, [start(PROMPTS[2], [guard])], tokens=21)
    reading = readings[0]["a"]
    assert (reading.position, reading.threshold) == (at, pytest.approx(limit))
    assert [token.flags.fired for token in rows[0]] == [n >= at for n in range(21)]
    assert ids(rows)[0][:at] == ids(bare)[0][:at]
    assert ids(rows)[0][at:] != ids(bare)[0][at:]


def test_without_recheck_the_prompt_alone_decides(engine: TransformersEngine) -> None:
    guard = RowGuard("a", threshold=1e6, strength=10.0)
    engine.prefill([start(PROMPTS[2], [guard])])
    score = engine.readings(0)["a"].score
    for _ in range(10):
        engine.decode()
    assert engine.readings(0)["a"].score == score


def test_first_token_of_a_prompt_is_not_sensed_unless_it_is_alone(
    model: Any, engine: TransformersEngine
) -> None:
    lone = [start([7], [SILENT])]
    engine.prefill(lone)
    assert engine.readings(0)["a"].score != 0.0
    with torch.inference_mode():
        hidden = model(torch.tensor([PROMPTS[0]]), output_hidden_states=True).hidden_states[1][0]
    # a gate with its highest score at the first token
    guard = replace(random_guard("a", sense=(0,), act=(0,), pool=1), gates=hidden[:1].clone())
    gate_scores = hidden @ hidden[0]
    assert gate_scores.argmax() == 0
    engine.use(bank_of([guard]))
    engine.prefill([start(PROMPTS[1], [SILENT]), start(PROMPTS[0], [SILENT])])
    expected = max(float(gate_scores[1:].max()), 0.0)
    assert engine.readings(1)["a"].score == pytest.approx(expected, abs=1e-3)


def test_a_row_that_meets_nan_is_marked_and_its_slot_is_sound_afterwards() -> None:
    model = tiny_model(seed=3)
    short, long, other = PROMPTS[3], PROMPTS[1], PROMPTS[0]
    expected = {n: generated(model, p, 30) for n, p in (("short", short), ("other", other))}
    unused = set(range(3, VOCABULARY)).difference(*PROMPTS, *expected.values())
    poison = min(unused)
    model.get_input_embeddings().weight.data[poison] = float("nan")
    engine = TransformersEngine(model, BANK, capacity=2)
    # longer than the next row of its slot, so that its states stay in the cache
    rows, readings = serve(
        engine, [start(other, [SILENT]), start([*long, poison, *long], [SILENT])], tokens=[30, 2]
    )
    assert [token.flags.invalid for token in rows[1]] == [True, True]
    assert not readings[1]["a"].valid
    assert not any(token.flags.invalid for token in rows[0])
    assert ids(rows)[0] == expected["other"]

    again, _ = serve(engine, [start(other, [SILENT]), start(short, [SILENT])], tokens=30)
    assert not any(token.flags.invalid for row in again for token in row)
    assert ids(again) == [expected["other"], expected["short"]]


def test_an_overflow_by_a_guard_is_found_after_its_last_check() -> None:
    """Float16 states end at 65504: the guard's addition becomes infinite, then NaN."""
    model = tiny_model().half()
    engine = TransformersEngine(model, BANK, capacity=2)
    quiet = start(PROMPTS[1], [replace(SILENT, recheck=None)])
    pushed = start(PROMPTS[0], [replace(FIRES, strength=1e6)])
    rows, readings = serve(engine, [quiet, pushed], tokens=4)
    assert all(token.flags.invalid for token in rows[1]) and not readings[1]["a"].valid
    assert not any(token.flags.invalid for token in rows[0]) and readings[0]["a"].valid


def test_half_precision_keeps_silent_rows_bit_identical() -> None:
    engine = TransformersEngine(tiny_model().bfloat16(), BANK, capacity=4)
    bare = batch(engine, [[], [], [], []])
    guarded = batch(engine, [[SILENT], [FIRES], [WATCHES], []])
    assert [content(guarded[row]) for row in (0, 2, 3)] == [content(bare[row]) for row in (0, 2, 3)]
    assert content(guarded[1]) != content(bare[1])


def test_rows_over_capacity_are_refused_and_change_nothing(engine: TransformersEngine) -> None:
    engine.prefill([start(p) for p in PROMPTS[:3]])
    with pytest.raises(ValueError, match="5 rows do not fit a capacity of 4"):
        engine.prefill([start(p, [FIRES]) for p in PROMPTS[:2]])
    assert engine.rows == 3
    assert len(engine.decode()) == 3


def test_an_empty_prompt_is_refused_and_changes_nothing(engine: TransformersEngine) -> None:
    engine.prefill([start(PROMPTS[0])])
    with pytest.raises(ValueError, match="no tokens"):
        engine.prefill([start(PROMPTS[1]), start([])])
    assert engine.rows == 1


@pytest.mark.parametrize(
    "refused",
    [
        Prompt((5, 6), (Media("image", "cached", 0, 1),)),
        Prompt((5, 6), positions=((0, 1), (0, 0), (0, 0))),
    ],
)
def test_a_prompt_of_more_than_text_is_refused_and_changes_nothing(
    engine: TransformersEngine, refused: Prompt
) -> None:
    engine.prefill([start(PROMPTS[0])])
    with pytest.raises(ValueError, match="leave them out"):
        engine.prefill([start(PROMPTS[1]), RowStart(refused, (), RowSampling())])
    assert engine.rows == 1


def test_drop_returns_its_moves_and_ignores_repeats(engine: TransformersEngine) -> None:
    engine.prefill([start(p, [SILENT] * (i % 2)) for i, p in enumerate(PROMPTS)])
    carried = [engine.readings(row) for row in range(4)]
    live = [0, 1, 2, 3]
    for source, target in engine.drop([0, 2, 0]):
        live[target] = live[source]
    assert engine.rows == 2
    assert sorted(live[:2]) == [1, 3]
    assert [engine.readings(row) for row in range(2)] == [carried[i] for i in live[:2]]
    assert engine.drop([]) == []


def test_use_swaps_the_guards_and_drops_the_rows(model: Any, engine: TransformersEngine) -> None:
    engine.prefill([start(PROMPTS[0], [FIRES])])
    engine.use(bank_of([random_guard("c", sense=(0,), act=(1,))]))
    assert engine.rows == 0 and hooks_on(model) == 2
    with pytest.raises(KeyError):
        engine.prefill([start(PROMPTS[0], [FIRES])])
    engine.prefill([start(PROMPTS[0], [replace(FIRES, name="c")])])
    assert engine.readings(0)["c"].fired
    engine.use(HiddenBank())
    assert hooks_on(model) == 0


def test_reset_forgets_all_rows(engine: TransformersEngine) -> None:
    bare = batch(engine, [[], [], [], []])
    engine.prefill([start(p, [FIRES]) for p in PROMPTS])
    engine.reset()
    assert engine.rows == 0
    assert content(batch(engine, [[], [], [], []])[0]) == content(bare[0])


def test_close_removes_the_hooks(model: Any) -> None:
    bare = generated(model, PROMPTS[0], 5)
    engine = TransformersEngine(model, BANK, capacity=1)
    assert hooks_on(model) == 3
    serve(engine, [start(PROMPTS[0], [FIRES])])
    engine.close()
    assert hooks_on(model) == 0
    assert generated(model, PROMPTS[0], 5) == bare


def test_logprobs_are_the_models_own(model: Any, engine: TransformersEngine) -> None:
    sampling = [RowSampling(top_logprobs=count) for count in (None, 0, 3, 20)]
    rows, _ = serve(engine, [start(PROMPTS[1], (), a) for a in sampling], tokens=4)
    plain, none, three, twenty = rows
    assert ids(rows)[1:] == ids(rows)[:-1]
    assert all(token.logprob is None and token.top == () for token in plain)
    assert [[len(t.top) for t in row] for row in (none, three, twenty)] == [
        [0] * 4,
        [3] * 4,
        [20] * 4,
    ]
    sequence = [*PROMPTS[1], *ids(rows)[0]]
    with torch.inference_mode():
        expected = (
            model(torch.tensor([sequence])).logits[0, len(PROMPTS[1]) - 1 : -1].log_softmax(-1)
        )
    for step, (a, b, c) in enumerate(zip(none, three, twenty, strict=True)):
        assert (
            a.logprob
            == b.logprob
            == c.logprob
            == pytest.approx(float(expected[step].max()), abs=1e-4)
        )
        values, tokens = expected[step].topk(20)
        assert [t for t, _ in c.top] == tokens.tolist()
        assert [v for _, v in c.top] == pytest.approx(values.tolist(), abs=1e-4)
        assert b.top == c.top[:3]


def test_the_settings_of_a_row_move_with_it(engine: TransformersEngine) -> None:
    sampling = [RowSampling(top_logprobs=count) for count in (1, None, 4)]
    rows, _ = serve(engine, [start(PROMPTS[0], (), a) for a in sampling], tokens=[2, 3, 6])
    assert [{len(token.top) for token in row} for row in rows] == [{1}, {0}, {4}]


def test_a_sampled_answer_depends_on_its_seed_not_on_its_batch(engine: TransformersEngine) -> None:
    hot = RowSampling(temperature=1.5, top_p=0.95, seed=1234)
    hots, cold = start(PROMPTS[0], (), hot), start(PROMPTS[2])
    alone, _ = serve(engine, [hots], tokens=12)
    again, _ = serve(engine, [hots], tokens=12)
    other, _ = serve(engine, [start(PROMPTS[0], (), replace(hot, seed=1235))], tokens=12)
    # the cold row leaves first: the hot one moves into its slot
    among, _ = serve(engine, [start(PROMPTS[1]), cold, hots], joins=[0, 1, 3], tokens=[20, 8, 12])
    assert ids(among)[2] == ids(again)[0] == ids(alone)[0]
    assert ids(other)[0] != ids(alone)[0]
    assert ids(among)[:2] == [
        serve_greedy(engine, PROMPTS[1], 20),
        serve_greedy(engine, PROMPTS[2], 8),
    ]


def serve_greedy(engine: TransformersEngine, tokens: list[int], count: int) -> list[int]:
    return ids(serve(engine, [start(tokens)], tokens=count)[0])[0]


def test_tokens_stay_inside_the_vocabulary(engine: TransformersEngine) -> None:
    wild = [RowSampling(temperature=t, seed=i) for i, t in enumerate((0.0, 1e-300, 100.0, 1.0))]
    rows, _ = serve(engine, [start(PROMPTS[0], (), s) for s in wild], tokens=10)
    assert all(0 <= token < VOCABULARY for row in ids(rows) for token in row)
    assert ids(rows)[0] == ids(rows)[1], "a temperature of 1e-300 is greedy"
