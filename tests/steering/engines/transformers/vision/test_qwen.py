"""Qwen-VL: positions on three axes, features behind the first layers, images that are refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from steering.engines.transformers.engine import RowStart
from steering.engines.transformers.offline import token_states
from steering.engines.transformers.sampling import RowSampling
from steering.engines.transformers.vision import vision_family
from steering.hidden.bank import HiddenBank
from steering.prompt import Media
from tests.steering.engines.driver import ids, serve
from tests.steering.engines.transformers.vision.family import WINDOW
from tests.steering.engines.transformers.vision.running import Running
from tests.steering.engines.transformers.vision.tiny import ask, image, tiny

KINDS = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"]
NO_SAMPLING = RowSampling()
CHATS = [
    ask("One"),
    ask("Wide", image(17, 70, 1)),
    ask("Tall and small, in this order", image(60, 17, 2), image(8, 8, 3)),
    [*ask("First", image(24, 24, 4)), {"role": "assistant", "content": "Yes."}, *ask("And now?")],
]


@pytest.fixture(scope="module", params=KINDS)
def running(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Running:
    return Running.of(request.param, tmp_path_factory.mktemp(request.param))


@pytest.mark.parametrize("chat", CHATS, ids=["text", "wide", "two", "turns"])
def test_positions_are_those_of_the_model(running: Running, chat: Any) -> None:
    """`get_rope_index` of transformers, and the offset with which decoding goes on."""
    prompt = running.prompt(chat)
    inputs = dict(running.tiny.inputs(chat))
    inputs.pop("pixel_values", None)
    positions, offset = running.model.model.get_rope_index(**inputs)
    axes = prompt.positions or (tuple(range(len(prompt))),) * 3
    assert [list(axis) for axis in axes] == positions[:, 0].tolist()
    assert prompt.next_position - len(prompt) == int(offset)
    assert (int(offset) < 0) is bool(prompt.media), "an image compresses the positions behind it"


def test_a_row_of_text_does_not_get_the_offset_of_its_neighbour(running: Running) -> None:
    """Nor does a row that moves to the place of one that has left."""
    chats = [CHATS[2], CHATS[0], CHATS[1], CHATS[0]]
    engine = running.engine(HiddenBank())
    starts = [RowStart(running.prompt(chat), (), NO_SAMPLING) for chat in chats]
    counts = [2, 12, 12, 5]
    rows, _ = serve(engine, starts, joins=[0, 0, 1, 1], tokens=counts)
    expected = [running.tiny.generated(n, chat)[0] for n, chat in zip(counts, chats, strict=True)]
    assert ids(rows) == expected


def test_positions_decide_the_answer(running: Running) -> None:
    """Otherwise the tests above could not fail: the same tokens, counted one by one."""
    prompt = running.prompt(CHATS[2])
    assert prompt.positions is not None
    flat = replace(prompt, positions=(tuple(range(len(prompt))),) * 3)
    (_, real), (_, other) = token_states(
        running.model, [prompt, flat], [3], vision=running.vision, batch=1
    )
    assert not torch.allclose(real[-1], other[-1], rtol=0.01, atol=0.01)


def test_images_without_positions_on_three_axes_are_refused(running: Running) -> None:
    """Counted one by one they would be wrong, without an error."""
    engine = running.engine(HiddenBank())
    counted = replace(running.prompt(CHATS[1]), positions=None)
    with pytest.raises(ValueError, match="has images and no positions.*3 axes"):
        engine.prefill([RowStart(counted, (), NO_SAMPLING)])
    assert engine.rows == 0
    flat = replace(counted, positions=(tuple(range(len(counted))),))
    with pytest.raises(ValueError, match="positions on 1 axes, and the model takes 3"):
        engine.prefill([RowStart(flat, (), NO_SAMPLING)])


def test_an_image_that_is_too_narrow_is_refused_with_a_reason(running: Running) -> None:
    running.prompt(ask("What?", image(2, 400)))
    with pytest.raises(ValueError, match="2 x 401 pixels is too narrow: .*at most 200 times"):
        running.prompt(ask("What?", image(2, 401)))


def test_an_image_with_other_tokens_or_without_pixels_has_no_positions(running: Running) -> None:
    tokens = [running.vision.image_token] * 8
    with pytest.raises(ValueError, match="an image of 2 x 2 tokens has 5 placeholder tokens"):
        running.vision.positions(tokens, [Media("image", image(16, 16), 0, 5)])
    with pytest.raises(ValueError, match="need its pixels"):
        running.vision.positions(tokens, [Media("image", "key", 0, 4)])


@pytest.mark.parametrize("name", ["patch_size", "merge_size", "temporal_patch_size"])
def test_an_image_processor_of_another_model_is_refused(running: Running, name: str) -> None:
    processor = tiny(running.kind).processor.image_processor
    setattr(processor, name, 3)
    with pytest.raises(ValueError, match=f"has {name} 3, and the vision tower"):
        vision_family(running.model.config, processor, running.tiny.tokenizer)


@pytest.mark.parametrize("kind", ["qwen2_vl", "qwen2_5_vl"])
def test_layers_with_a_window_count_tokens_and_not_positions(kind: str, tmp_path: Path) -> None:
    """Images compress positions: a window over them would reach further back than the model's."""
    layers = ["full_attention", "sliding_attention"] * 2
    window = {"use_sliding_window": True, "sliding_window": WINDOW, "layer_types": layers}
    running = Running.of(kind, tmp_path, **window)
    assert running.model.config.get_text_config().layer_types == layers
    engine = running.engine(HiddenBank())
    starts = [RowStart(running.prompt(chat), (), NO_SAMPLING) for chat in CHATS[:3]]
    rows, _ = serve(engine, starts, joins=[0, 0, 2], tokens=10)
    expected = [running.tiny.generated(10, chat)[0] for chat in CHATS[:3]]
    assert ids(rows) == expected
    full = Running.of(kind, tmp_path / "full")
    assert expected[1:] != [full.tiny.generated(10, chat)[0] for chat in CHATS[1:3]]


def test_features_behind_the_first_layers_reach_the_states(tmp_path: Path) -> None:
    """Qwen3-VL: the states of an image's tokens behind the second layer hold those of the first."""
    running = Running.of("qwen3_vl", tmp_path)
    prompt = running.prompt(CHATS[2])
    ((_, states),) = token_states(running.model, [prompt], [0, 1], vision=running.vision)
    for merger in running.model.model.visual.deepstack_merger_list:
        for parameter in merger.parameters():
            parameter.data.zero_()
    ((_, without),) = token_states(running.model, [prompt], [0, 1], vision=running.vision)
    at = prompt.media[0].start
    assert torch.equal(states[:, 0], without[:, 0])
    assert torch.equal(states[:at], without[:at])
    assert not torch.allclose(states[at, 1], without[at, 1], rtol=0.01, atol=0.01)
