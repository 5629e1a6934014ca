"""Prompts with images in the engine: what is refused before a row has changed, and how often images
are encoded."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from steering.engines.transformers.engine import RowStart, TransformersEngine
from steering.engines.transformers.offline import token_losses, token_states
from steering.engines.transformers.sampling import RowSampling
from steering.engines.transformers.vision import images
from steering.hidden.bank import HiddenBank
from steering.prompt import Prompt
from tests.steering.engines.driver import ids, serve, start
from tests.steering.engines.transformers.vision.running import Running
from tests.steering.engines.transformers.vision.tiny import ask, image

GREEDY = RowSampling()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Running:
    return Running.of("llava", tmp_path_factory.mktemp("llava"))


@pytest.fixture
def engine(running: Running) -> TransformersEngine:
    return running.engine(HiddenBank())


def begun(prompt: Prompt) -> RowStart:
    return RowStart(prompt, (), GREEDY)


def broken(prompt: Prompt, how: str) -> Prompt:
    (item,) = prompt.media
    if how == "short":
        return replace(prompt, media=(replace(item, stop=item.stop - 1),))
    if how == "elsewhere":
        tokens = list(prompt.tokens)
        tokens[item.start] = 5
        return replace(prompt, tokens=tuple(tokens))
    if how == "reference":
        return replace(prompt, media=(replace(item, content="a key"),))
    return replace(prompt, positions=(tuple(range(len(prompt))),) * 3)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("short", "has 15 placeholder tokens, and needs 16 for its 16 x 16 pixels"),
        ("elsewhere", "has 15 placeholder tokens, and needs 16"),
        ("reference", "is a reference: this engine needs its pixels"),
        ("axes", "has positions on 3 axes, and the model takes 1"),
    ],
)
def test_a_prompt_that_does_not_fit_is_refused_before_a_row_has_changed(
    running: Running, engine: TransformersEngine, how: str, message: str
) -> None:
    good = running.prompt(ask("What?", image(16, 16, 1)))
    expected = running.tiny.generated(6, ask("What?", image(16, 16, 1)))[0]
    rows = [engine.prefill([begun(good)])]
    bad = broken(good, how)
    for call in (
        lambda: engine.prefill([begun(good), begun(bad)]),
        lambda: engine.begin(begun(bad)),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    assert engine.rows == 1
    rows += [engine.decode() for _ in range(5)]
    assert [row[0].token for row in rows] == expected
    for read in (token_states(running.model, [bad], [0], vision=running.vision),):
        with pytest.raises(ValueError, match=message):
            next(read)


def test_a_tower_that_makes_other_counts_is_refused(
    running: Running, engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = running.vision.encode

    def shorter(model: Any, inputs: Any) -> Any:
        return [features[:-1] for features in encode(model, inputs)]

    monkeypatch.setattr(running.vision, "encode", shorter)
    with pytest.raises(ValueError, match="makes 15 features of an image with 16 placeholder"):
        engine.prefill([begun(running.prompt(ask("What?", image(16, 16))))])
    assert engine.rows == 0


def test_a_language_model_refuses_images(running: Running) -> None:
    engine = TransformersEngine(running.model, HiddenBank(), capacity=2)
    with pytest.raises(ValueError, match=r"takes text alone, and the prompt has media \(image\)"):
        engine.prefill([begun(running.prompt(ask("What?", image(16, 16))))])


def test_images_are_encoded_once_and_no_more_than_so_many_at_a_time(
    running: Running, engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[int] = []
    encode = running.vision.encode

    def counted(model: Any, inputs: Any) -> Any:
        encoded.append(len(inputs["pixel_values"]))
        return encode(model, inputs)

    monkeypatch.setattr(running.vision, "encode", counted)
    monkeypatch.setattr(images, "AT_ONCE", 4 * 16)
    many = running.prompt(ask("?", *[image(16, 16, n) for n in range(6)]))
    one = running.prompt(ask("?", image(16, 16)))
    engine.prefill([begun(one), begun(many)])
    assert encoded == [4, 3]
    engine.decode()
    engine.reset()
    engine.begin(begun(many))
    while engine.read(50) is None:
        pass
    assert encoded == [4, 3, 4, 2]
    monkeypatch.setattr(images, "AT_ONCE", 5)
    engine.prefill([begun(one), begun(one)])
    assert encoded[4:] == [1, 1]


def test_a_placeholder_without_an_image_is_a_token_as_any_other(
    running: Running, engine: TransformersEngine
) -> None:
    """In the ids of a prompt, which a client may write: as transformers runs them."""
    tokens = [5, running.vision.image_token, 6, running.vision.image_token]
    rows, _ = serve(engine, [start(tokens)], tokens=6)
    given = torch.tensor([tokens])
    answer = running.model.generate(
        input_ids=given,
        attention_mask=torch.ones_like(given),
        max_new_tokens=6,
        min_new_tokens=6,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    assert ids(rows) == [answer[0, 4:].tolist()]


@pytest.mark.parametrize("kind", ["llava", "qwen3_vl", "gemma3"])
def test_states_and_losses_are_those_of_the_model_with_its_images(kind: str, tmp_path: Any) -> None:
    """Of prompts with answers behind them, in a batch with text."""
    running = Running.of(kind, tmp_path)
    chats = [ask("What?", image(20, 30, 1)), ask("Hello!"), ask("And?", image(16, 16, 2))]
    answer = running.tiny.generated(5, chats[0])[0]
    prompts = [running.prompt(chat) for chat in chats]
    sequences: list[Any] = [prompts[0].extended(answer), list(prompts[1].tokens), prompts[2]]
    states = dict(token_states(running.model, sequences, [0, 2], vision=running.vision))
    losses = dict(token_losses(running.model, sequences, vision=running.vision))
    engine = running.engine(HiddenBank())
    (row,), _ = serve(engine, [begun(prompts[0])], tokens=5)
    assert ids([row]) == [answer]
    for i, chat in enumerate(chats):
        inputs = running.tiny.inputs(chat)
        with torch.inference_mode():
            output = running.model(**inputs, output_hidden_states=True)
        expected = torch.stack([output.hidden_states[layer + 1][0] for layer in (0, 2)], 1)
        count = len(prompts[i])
        assert torch.allclose(states[i][:count], expected, atol=1e-3)
        targets = inputs["input_ids"][0, 1:]
        each = -output.logits[0, :-1].log_softmax(-1)[torch.arange(count - 1), targets]
        assert torch.allclose(losses[i][: count - 1], each, atol=1e-3)
    # greedy: no token is likelier than those of the answer
    engine.reset()
    logprobs = replace(begun(prompts[0]), sampling=RowSampling(top_logprobs=1))
    (row,), _ = serve(engine, [logprobs], tokens=5)
    answered = losses[0][len(prompts[0]) - 1 :]
    assert answered.tolist() == pytest.approx([-t.logprob for t in row], abs=1e-3)
