"""Each tested architecture: its layers are found, and batched answers equal those of `generate`."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    FalconConfig,
    RecurrentGemmaConfig,
)

from steering.engines.transformers.engine import TransformersEngine
from steering.engines.transformers.layers import (
    TESTED,
    UnknownArchitecture,
    decoder_layers,
    even_context,
    hidden_of,
    with_hidden,
)
from steering.engines.transformers.vision import FAMILIES as VISION
from steering.hidden.bank import HiddenBank
from steering.hidden.rows import RowGuard
from steering.methods.steer import bank_of
from tests.steering.engines.driver import generated, ids, serve, start
from tests.steering.engines.transformers.vision.tiny import FAMILIES
from tests.steering.tiny import CONFIGS, LAYERS, WIDTH, WINDOW, prompt, random_guard, tiny_model


def test_every_tested_architecture_is_tested_here_or_with_images() -> None:
    vision = {kind.partition("-")[0] for kind in FAMILIES}
    assert {*CONFIGS} | vision == {*TESTED} and vision == {*VISION}


@pytest.mark.parametrize("kind", CONFIGS)
def test_layers_are_found_in_order_and_return_the_residual_stream(kind: str) -> None:
    model = tiny_model(kind)
    assert model.config.model_type == kind
    layers = decoder_layers(model)
    outputs: list[tuple[int, Tensor]] = []
    for i, layer in enumerate(layers):
        layer.register_forward_hook(lambda _m, _i, out, i=i: outputs.append((i, hidden_of(out))))
    with torch.inference_mode():
        expected = model(torch.tensor([prompt(6, 0)]), output_hidden_states=True).hidden_states
    assert [i for i, _ in outputs] == list(range(LAYERS))
    for i, hidden in outputs[:-1]:
        assert hidden.shape == (1, 6, WIDTH)
        assert torch.equal(hidden, expected[i + 1])


@pytest.mark.parametrize("kind", CONFIGS)
def test_batched_greedy_answers_are_those_of_generate(kind: str) -> None:
    """Mixed lengths, some longer than the window; rows that join late and leave early."""
    model = tiny_model(kind)
    engine = TransformersEngine(model, HiddenBank(), capacity=4)
    prompts = [prompt(n, seed) for seed, n in enumerate((5, 3 * WINDOW, 12, 1, 2 * WINDOW))]
    tokens = [14, 4, 12, 9, 10]
    rows, _ = serve(engine, [start(p) for p in prompts], joins=[0, 0, 2, 2, 5], tokens=tokens)
    expected = [generated(model, p, n) for p, n in zip(prompts, tokens, strict=True)]
    assert ids(rows) == expected
    assert len({token for row in expected for token in row}) > 5, (
        "too few different tokens for a test"
    )


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_guard_steers_its_row_and_leaves_the_others(kind: str) -> None:
    model = tiny_model(kind)
    engine = TransformersEngine(model, bank_of([random_guard()]), capacity=3)
    prompts = [prompt(n, seed) for seed, n in enumerate((5, 2 * WINDOW, 9))]
    fires = RowGuard("guard", threshold=-1.0, strength=20.0)
    bare, _ = serve(engine, [start(p) for p in prompts])
    steered, _ = serve(engine, [start(p, [fires] * (i == 1)) for i, p in enumerate(prompts)])
    assert [steered[0], steered[2]] == [bare[0], bare[2]]
    assert ids(steered)[1] != ids(bare)[1]


@pytest.mark.parametrize("kind", ["llama", "mistral", "gemma2"])
def test_answers_do_not_depend_on_the_attention_kernel(kind: str) -> None:
    model = tiny_model(kind, attn_implementation="eager")
    assert model.config._attn_implementation == "eager"
    engine = TransformersEngine(model, HiddenBank(), capacity=3)
    prompts = [prompt(n, seed) for seed, n in enumerate((5, 3 * WINDOW, 12))]
    rows, _ = serve(engine, [start(p) for p in prompts], joins=[0, 1, 1])
    assert ids(rows) == [generated(model, p, 8) for p in prompts]


def test_some_tested_architecture_slides_its_window() -> None:
    """Otherwise the tests above would not cover windows: the window must change an answer."""
    wide = tiny_model("mistral", sliding_window=None)
    narrow = tiny_model("mistral")
    long = prompt(3 * WINDOW, 1)
    assert generated(wide, long, 6) != generated(narrow, long, 6)


@pytest.mark.parametrize(
    ("model", "match"),
    [
        (nn.Linear(2, 2), "cannot find the decoder layers of a 'Linear' model; tested.*llama, mis"),
        (
            BertConfig(hidden_size=8, num_attention_heads=2, intermediate_size=8, is_decoder=True),
            "cannot find the decoder layers of a 'bert' model",
        ),
        (
            FalconConfig(hidden_size=8, num_hidden_layers=2, num_attention_heads=2, alibi=True),
            "'falcon' model with ALiBi positions is not supported; tested",
        ),
        (
            BartForConditionalGeneration(
                BartConfig(
                    vocab_size=60,
                    d_model=8,
                    encoder_layers=2,
                    decoder_layers=2,
                    encoder_attention_heads=2,
                    decoder_attention_heads=2,
                )
            ),
            "'bart' model has an encoder",
        ),
        (
            RecurrentGemmaConfig(
                hidden_size=8, intermediate_size=8, num_hidden_layers=3, num_attention_heads=2
            ),
            "'recurrent_gemma' model has layers of linear_attention",
        ),
    ],
    ids=["no-model", "bert", "alibi", "encoder", "recurrent"],
)
def test_unsupported_models_are_refused_with_a_reason(model: object, match: str) -> None:
    if not isinstance(model, nn.Module):
        model = AutoModelForCausalLM.from_config(model)
    with pytest.raises(UnknownArchitecture, match=match):
        decoder_layers(model)


def test_hidden_of_and_with_hidden_keep_the_other_outputs_of_a_layer() -> None:
    hidden, other = torch.zeros(1, 2, 3), torch.ones(1, 2, 3)
    rest = object()
    assert hidden_of((hidden, rest)) is hidden and hidden_of(hidden) is hidden
    assert with_hidden((hidden, rest), other) == (other, rest)
    assert with_hidden(hidden, other) is other


def test_the_context_ends_where_a_long_row_would_change_its_neighbours() -> None:
    """ "longrope" chooses the factors of a batch by its longest row: 16 tokens here."""
    factors = {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4, "rope_type": "longrope"}
    rope = {**factors, "rope_theta": 10000.0, "original_max_position_embeddings": 16}
    scaled = {"original_max_position_embeddings": 16, "rope_parameters": rope}
    model = tiny_model("phi3", **scaled)
    most = even_context(model.config)
    assert most == 16 and even_context(tiny_model("phi3").config) is None
    assert even_context(tiny_model("gemma3_text").config) is None
    engine = TransformersEngine(model, HiddenBank(), capacity=2)
    row = start(prompt(9, 0))
    alone, _ = serve(engine, [row], tokens=6)
    beside, _ = serve(engine, [row, start(prompt(most - 6, 1))], tokens=6)
    assert beside[0] == alone[0]
    pushed, _ = serve(engine, [row, start(prompt(2 * most, 1))], tokens=6)
    assert pushed[0] != alone[0]
