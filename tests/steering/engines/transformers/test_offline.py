"""Answers, states and losses of many prompts at once equal those of each prompt alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from steering.engines.transformers.engine import TransformersEngine
from steering.engines.transformers.layers import decoder_layers, hidden_of
from steering.engines.transformers.offline import answers, token_losses, token_states
from steering.hidden.bank import HiddenBank
from steering.hidden.rows import RowGuard
from steering.methods.steer import bank_of
from tests.steering.engines.driver import generated, hooks_on, serve, start
from tests.steering.tiny import LAYERS, WIDTH, prompt, random_guard, tiny_model

PROMPTS = [prompt(n, seed) for seed, n in enumerate((9, 3, 17, 1, 12, 6, 3))]


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model()


def test_answers_come_in_order_and_stop_at_end_tokens(model: Any) -> None:
    engine = TransformersEngine(model, HiddenBank(), capacity=3)
    full = [generated(model, p, 10) for p in PROMPTS]
    # tokens that end some answers early, one at its first token, and others never
    ends = frozenset({full[0][0], full[2][4]})
    cut = [next((n for n, t in enumerate(row) if t in ends), 10) for row in full]
    assert 0 in cut and 10 in cut and len(set(cut)) > 2
    finished: list[int] = []
    results = answers(
        engine,
        [start(p) for p in PROMPTS],
        max_tokens=10,
        end_tokens=ends,
        advance=finished.append,
    )
    assert [list(a.tokens) for a in results] == [row[:n] for row, n in zip(full, cut, strict=True)]
    assert sum(finished) == len(PROMPTS)
    assert engine.rows == 0


def test_answers_carry_the_readings_of_their_own_guards(model: Any) -> None:
    engine = TransformersEngine(model, bank_of([random_guard()]), capacity=3)
    guard = RowGuard("guard", threshold=1e6, strength=1.0)
    results = answers(
        engine, [start(p, [guard]) for p in PROMPTS], max_tokens=3, end_tokens=frozenset()
    )
    for answer, tokens in zip(results, PROMPTS, strict=True):
        engine.reset()
        _, alone = serve(engine, [start(tokens, [guard])], tokens=3)
        assert answer.readings["guard"].score == pytest.approx(alone[0]["guard"].score, abs=1e-4)
    engine.close()


def test_no_prompts_give_no_answers(model: Any) -> None:
    engine = TransformersEngine(model, HiddenBank(), capacity=3)
    assert answers(engine, [], max_tokens=3, end_tokens=frozenset()) == []


@pytest.mark.parametrize("kind", ["llama", "mistral", "gemma3_text"])
@pytest.mark.parametrize("layers", [[0], [0, 2], [2, 1]])
def test_token_states_are_the_models_hidden_states(kind: str, layers: list[int]) -> None:
    model = tiny_model(kind)
    advanced: list[int] = []
    found = dict(token_states(model, PROMPTS, layers, batch=3, advance=advanced.append))
    assert sorted(found) == list(range(len(PROMPTS))) and sum(advanced) == len(PROMPTS)
    for i, tokens in enumerate(PROMPTS):
        with torch.inference_mode():
            states = model(torch.tensor([tokens]), output_hidden_states=True).hidden_states
        expected = torch.stack([states[layer + 1][0] for layer in layers], dim=1)
        assert found[i].shape == (len(tokens), len(layers), WIDTH)
        assert found[i].dtype == torch.float32
        assert torch.allclose(found[i], expected, atol=1e-4)


@pytest.mark.parametrize("kind", ["llama", "mistral", "gpt2", "gemma3_text"])
def test_a_beginning_that_all_sequences_share_is_read_once(kind: str) -> None:
    model, beginning = tiny_model(kind), prompt(10, 99)
    # one of them is the beginning itself, another one has a token more
    sequences = [beginning, [*beginning, *prompt(1, 5)], *([*beginning, *p] for p in PROMPTS)]
    widths: list[int] = []

    def count(_module: Any, inputs: Any, output: Any) -> None:
        widths.append(hidden_of(output).shape[1])

    handle = decoder_layers(model)[0].register_forward_hook(count)
    found = dict(token_states(model, sequences, [0, 2], batch=4))
    handle.remove()
    alone = dict(
        pair for i, tokens in enumerate(sequences) for pair in _states_alone(model, i, tokens)
    )
    for i, states in alone.items():
        assert torch.allclose(found[i], states, atol=1e-4)
    if kind in ("llama", "gpt2"):  # the others have layers that do not see the whole beginning
        assert widths[0] == 9 and sum(widths[1:]) < sum(map(len, sequences))


def test_token_states_end_the_forward_at_the_last_needed_layer() -> None:
    model = tiny_model()
    ran = [0] * LAYERS
    for i, layer in enumerate(decoder_layers(model)):

        def count(_module: Any, _inputs: Any, i: int = i) -> None:
            ran[i] += 1

        layer.register_forward_pre_hook(count)
    list(token_states(model, PROMPTS, [1], batch=len(PROMPTS)))
    assert ran == [1, 1, 0, 0]


def test_token_states_remove_their_hooks(model: Any) -> None:
    with torch.inference_mode():
        before = model(torch.tensor([PROMPTS[2]])).logits
    list(token_states(model, PROMPTS, [1]))
    abandoned = token_states(model, PROMPTS, [1], batch=2)
    next(abandoned)
    abandoned.close()
    assert hooks_on(model) == 0
    with torch.inference_mode():
        assert torch.equal(model(torch.tensor([PROMPTS[2]])).logits, before)


def _states_alone(model: Any, i: int, tokens: list[int]) -> list[tuple[int, torch.Tensor]]:
    ((_, states),) = token_states(model, [tokens], [0, 2])
    return [(i, states)]


def test_token_losses_are_each_sequences_own(model: Any) -> None:
    found = dict(token_losses(model, PROMPTS, batch=3))
    assert sorted(found) == list(range(len(PROMPTS)))
    for i, tokens in enumerate(PROMPTS):
        with torch.inference_mode():
            logits = model(torch.tensor([tokens])).logits[0, :-1].log_softmax(-1)
        expected = -logits[torch.arange(len(tokens) - 1), tokens[1:]]
        assert found[i].shape == (len(tokens) - 1,)
        assert torch.allclose(found[i], expected, atol=1e-4)
