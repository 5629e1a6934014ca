"""Each family of vision-language models: the engine's answers are those of the model's own
`generate`, rows are independent, silence is identity, and parts of a prompt add up to the whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from steering.engines.transformers.engine import RowStart, TransformersEngine
from steering.engines.transformers.offline import token_losses, token_states
from steering.engines.transformers.row_tokens import RowToken
from steering.engines.transformers.sampling import RowSampling
from steering.hidden.rows import RowGuard
from steering.methods.steer import bank_of
from tests.steering.engines.driver import ids, serve
from tests.steering.engines.transformers.vision.family import WIDTH
from tests.steering.engines.transformers.vision.running import Running
from tests.steering.engines.transformers.vision.tiny import FAMILIES, ask, image
from tests.steering.tiny import random_guard

BANK = bank_of([random_guard("a", width=WIDTH), random_guard("b", seed=1, sense=(0,), act=(3,))])
FIRES = RowGuard("a", threshold=-1.0, strength=10.0)
SILENT = RowGuard("a", threshold=1e6, strength=10.0, recheck=1e6)
LOGPROBS = RowSampling(top_logprobs=5)
CHATS = [
    ask("What is on it?", image(20, 30, 1)),
    ask("Hello!"),
    ask("And on these two: are they the same?", image(16, 16, 2), image(44, 20, 3)),
    ask("One more, please.", image(64, 9, 4)),
]
TWO_IMAGES = CHATS[2]


@pytest.fixture(scope="module", params=FAMILIES)
def running(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Running:
    return Running.of(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture
def engine(running: Running) -> Iterator[TransformersEngine]:
    engine = running.engine(BANK)
    yield engine
    engine.close()


def started(
    running: Running, chats: Sequence[Any], carried: Sequence[Sequence[RowGuard]]
) -> list[RowStart]:
    return [
        RowStart(running.prompt(chat), guards, LOGPROBS)
        for chat, guards in zip(chats, carried, strict=True)
    ]


def content(row: list[RowToken]) -> list[tuple[Any, ...]]:
    """Tokens and their log-probabilities, bit for bit."""
    return [(token.token, token.logprob, token.top) for token in row]


def test_a_chat_has_the_tokens_that_the_processor_of_the_family_gives(running: Running) -> None:
    for chat in CHATS:
        prompt = running.prompt(chat)
        inputs = running.tiny.inputs(chat)
        assert list(prompt.tokens) == inputs["input_ids"][0].tolist()
        placeholder = running.model.config.image_token_id
        spans = [prompt.tokens[item.start : item.stop] for item in prompt.media]
        # those of tiles have the names of their places between them
        assert all(span[0] == span[-1] == placeholder for span in spans)
        inside = sum(span.count(placeholder) for span in spans)
        assert inside == prompt.tokens.count(placeholder) > 0 or not prompt.media


def test_answers_are_those_of_generate_alone_and_in_a_ragged_batch(
    running: Running, engine: TransformersEngine
) -> None:
    """Rows with and without images, of different sizes, that join late and leave early."""
    tokens = [14, 9, 12, 10]
    expected = [
        running.tiny.generated(count, chat)[0] for count, chat in zip(tokens, CHATS, strict=True)
    ]
    together, _ = serve(
        engine, started(running, CHATS, [[]] * 4), joins=[0, 0, 2, 2], tokens=tokens
    )
    assert ids(together) == expected
    for chat, answer in zip(CHATS, expected, strict=True):
        engine.reset()
        alone, _ = serve(engine, started(running, [chat], [[]]), tokens=len(answer))
        assert ids(alone) == [answer]
    assert len({token for row in expected for token in row}) > 5, "too few tokens for a test"


def test_generate_itself_gives_these_answers_in_a_padded_batch(running: Running) -> None:
    """Otherwise the reference above would hang on the padding."""
    batch = running.tiny.generated(10, *CHATS)
    assert batch == [running.tiny.generated(10, chat)[0] for chat in CHATS]


def test_what_an_image_shows_and_where_it_stands_decides_the_answer(
    running: Running, engine: TransformersEngine
) -> None:
    first, second = image(24, 24, 5), image(24, 24, 6)
    chats = [ask("What?", first), ask("What?", second)]
    chats += [ask("What?", first, second), ask("What?", second, first)]
    rows, _ = serve(engine, started(running, chats, [[]] * 4), tokens=10)
    assert len({tuple(row) for row in ids(rows)}) == 4
    assert ids(rows) == [running.tiny.generated(10, chat)[0] for chat in chats]


@pytest.mark.parametrize(
    "quiet", [[SILENT], [replace(FIRES, acts=False, recheck=-1.0)]], ids=["silent", "observe"]
)
def test_rows_that_do_not_act_are_bit_identical_to_bare_ones(
    running: Running, engine: TransformersEngine, quiet: list[RowGuard]
) -> None:
    bare, _ = serve(engine, started(running, CHATS, [[]] * 4))
    engine.reset()
    guarded, readings = serve(engine, started(running, CHATS, [quiet, [], [FIRES], quiet]))
    for row in (0, 1, 3):
        assert content(guarded[row]) == content(bare[row])
    assert content(guarded[2]) != content(bare[2]), "nothing was steered: the test is empty"
    assert readings[0]["a"].score is not None and readings[2]["a"].fired


@pytest.mark.parametrize("parts", [[1], [3], [7], [11, 5], [16]])
def test_a_prompt_in_parts_has_the_answer_and_the_score_of_the_whole(
    running: Running, engine: TransformersEngine, parts: list[int]
) -> None:
    """Images begin and end inside of parts, and one is longer than a part."""
    (begun,) = started(running, [TWO_IMAGES], [[SILENT]])
    whole, readings = serve(engine, [begun], tokens=12)
    assert ids(whole) == running.tiny.generated(12, TWO_IMAGES)
    engine.reset()
    beside = running.prompt(CHATS[0])
    rows = [engine.prefill([RowStart(beside, (), LOGPROBS)])]
    engine.begin(begun)
    sizes = iter([*parts, *[parts[-1]] * 200])
    while (token := engine.read(next(sizes))) is None:
        rows.append(engine.decode())
    answer = [token]
    while len(answer) < 12:
        rows.append(engine.decode())
        answer.append(rows[-1][1])
    assert ids([answer]) == ids(whole)
    score = engine.readings(1)["a"].score
    assert score == pytest.approx(readings[0]["a"].score, rel=1e-4)
    count = min(len(rows), 12)
    assert [row[0].token for row in rows][:count] == running.tiny.generated(count, CHATS[0])[0]


def test_guards_sense_the_states_that_the_model_reports(
    running: Running, engine: TransformersEngine
) -> None:
    """After each decoder layer, at text and at image tokens: what `output_hidden_states` holds."""
    chat = CHATS[2]
    with torch.inference_mode():
        states = running.model(**running.tiny.inputs(chat), output_hidden_states=True)
    gates = random_guard("a", width=WIDTH).gates
    layers = random_guard("a", width=WIDTH).sense_layers
    scores = sum(
        (states.hidden_states[layer + 1][0].float() @ gate)
        for layer, gate in zip(layers, gates, strict=True)
    )
    assert isinstance(scores, torch.Tensor)
    expected = scores[1:].topk(2).values.mean().clamp(min=0)
    engine.prefill(started(running, [chat], [[SILENT]]))
    assert engine.readings(0)["a"].score == pytest.approx(float(expected), rel=1e-4)


def test_an_image_token_can_fire_a_guard(running: Running, engine: TransformersEngine) -> None:
    """The states of an image's tokens reach the gate: it fires for one and not another."""
    chats = [ask("What?", image(24, 24, seed)) for seed in range(4)]
    _, readings = serve(engine, started(running, chats, [[SILENT]] * 4), tokens=1)
    scores = sorted(reading["a"].score for reading in readings)
    assert scores[-1] > scores[0]
    limit = (scores[0] + scores[-1]) / 2
    engine.reset()
    guards = [[RowGuard("a", threshold=limit, strength=10.0)]] * 4
    rows, readings = serve(engine, started(running, chats, guards), tokens=2)
    assert {reading["a"].fired for reading in readings} == {True, False}


def test_generate_of_the_caller_and_rows_of_the_engine_do_not_disturb_each_other(
    running: Running, engine: TransformersEngine
) -> None:
    """Families keep state of the last call on the model itself (the offsets of M-RoPE)."""
    expected = [running.tiny.generated(8, chat)[0] for chat in CHATS]
    step = engine.prefill(started(running, CHATS, [[]] * 4))
    rows = [[token] for token in step]
    assert running.tiny.generated(8, TWO_IMAGES)[0] == expected[2]
    for _ in range(7):
        for row, token in zip(rows, engine.decode(), strict=True):
            row.append(token)
    assert ids(rows) == expected
    assert running.tiny.generated(8, CHATS[0])[0] == expected[0]


def test_states_and_losses_of_whole_sequences_are_those_of_the_model(running: Running) -> None:
    """For fits and evals, in a ragged batch: prompts with answers behind them, whose positions go
    on, and images that attend to themselves as they do in `generate`."""
    answers = [[5, 9, 33, 70], [12], [60, 61, 62]]
    sequences = [running.prompt(chat).extended(a) for chat, a in zip(CHATS, answers, strict=False)]
    states = dict(token_states(running.model, sequences, [0, 2], vision=running.vision))
    losses = dict(token_losses(running.model, sequences, vision=running.vision))
    for at, (chat, answer) in enumerate(zip(CHATS, answers, strict=False)):
        inputs = _followed_by(running.tiny.inputs(chat), answer)
        with torch.inference_mode():
            output = running.model(**inputs, output_hidden_states=True)
        expected = torch.stack([output.hidden_states[layer + 1][0] for layer in (0, 2)], 1)
        assert torch.allclose(states[at], expected, atol=1e-3)
        logprobs = output.logits[0, :-1].log_softmax(-1)
        chosen = logprobs.gather(1, inputs["input_ids"][0, 1:, None])[:, 0]
        assert torch.allclose(losses[at], -chosen, atol=1e-2)


def _followed_by(inputs: Any, answer: list[int]) -> dict[str, Any]:
    """The inputs of one chat with tokens of text behind it."""
    behind = {"input_ids": torch.tensor([answer]), "attention_mask": torch.ones(1, len(answer))}
    none = torch.zeros(1, len(answer), dtype=torch.long)
    for name in ("mm_token_type_ids", "token_type_ids"):
        behind[name] = none
    return {
        name: torch.cat([value, behind[name].to(value.dtype)], 1) if name in behind else value
        for name, value in inputs.items()
    }


def test_images_of_one_pixel_and_of_one_row_are_answered(
    running: Running, engine: TransformersEngine
) -> None:
    chats = [ask("What?", np.full((1, 1, 3), 200, np.uint8)), ask("What?", image(2, 150, 1))]
    rows, _ = serve(engine, started(running, chats, [[]] * 2), tokens=6)
    assert ids(rows) == [running.tiny.generated(6, chat)[0] for chat in chats]


def test_names_of_placeholders_in_a_text_are_text(running: Running) -> None:
    for name in FAMILIES[running.kind].special:
        (plain, holding) = (running.prompt(ask(text)) for text in ("a", f"a{name}"))
        assert not holding.media and len(holding) == len(plain) + len(name)
        real = ask(f"{name}?", image(16, 16))
        assert len(running.prompt(real).media) == 1
