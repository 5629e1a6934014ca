"""Gemma 3: the tokens of an image attend to each other, in parts and behind a window too."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from steering.engines.transformers.engine import RowStart
from steering.engines.transformers.offline import token_states
from steering.engines.transformers.sampling import RowSampling
from steering.engines.transformers.vision import vision_family
from steering.hidden.bank import HiddenBank
from steering.prompt import Prompt
from tests.steering.engines.transformers.vision.family import WINDOW
from tests.steering.engines.transformers.vision.running import Running
from tests.steering.engines.transformers.vision.tiny import ask, image, tiny

FIRST, SECOND = image(16, 16, 1), image(16, 16, 2)
BANK = HiddenBank()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Running:
    return Running.of("gemma3", tmp_path_factory.mktemp("gemma3"))


def states(running: Running, prompt: Prompt) -> Tensor:
    """`[tokens, layers, width]` behind a layer with a window and one without."""
    ((_, read),) = token_states(running.model, [prompt], [0, 1], vision=running.vision)
    return read


def changed(one: Tensor, other: Tensor) -> list[int]:
    """The tokens whose states differ."""
    return [at for at in range(len(one)) if not torch.allclose(one[at], other[at], atol=1e-4)]


def test_an_image_is_longer_than_the_window() -> None:
    """Otherwise no test here would meet the window inside of an image."""
    model = tiny("gemma3").model
    text = model.config.get_text_config()
    assert text.sliding_window == WINDOW < model.config.mm_tokens_per_image == 16
    assert {*text.layer_types} == {"sliding_attention", "full_attention"}


def test_an_image_attends_to_all_of_itself_and_to_no_later_image(running: Running) -> None:
    """The patch at the lower right is one of the last tokens; the first one attends to it."""
    marked = FIRST.copy()
    marked[12:, 12:] = 255 - marked[12:, 12:]
    first, second = (running.prompt(ask("?", each, SECOND)) for each in (FIRST, marked))
    assert first.tokens == second.tokens
    before = range(first.media[0].start)
    at = changed(states(running, first), states(running, second))
    assert not {*before} & {*at} and {*range(first.media[0].start, len(first) - WINDOW)} <= {*at}

    other = running.prompt(ask("?", FIRST, image(16, 16, 3)))
    at = changed(states(running, first), states(running, other))
    assert min(at) == first.media[1].start


def test_without_both_directions_the_answers_are_others(running: Running, monkeypatch: Any) -> None:
    """The mask in question decides something: a causal one has other states in the image."""
    prompt = running.prompt(ask("?", FIRST))
    real = states(running, prompt)
    monkeypatch.setattr(type(running.vision), "whole", False)
    causal = states(running, prompt)
    assert changed(real, causal)[0] == prompt.media[0].start


@pytest.mark.parametrize("most", [1, 5, 20])
def test_parts_of_a_prompt_never_cut_an_image(running: Running, most: int) -> None:
    prompt = running.prompt(ask("Two of them", FIRST, SECOND))
    engine = running.engine(BANK)
    engine.begin(RowStart(prompt, (), RowSampling()))
    inside = {at for item in prompt.media for at in range(item.start + 1, item.stop)}
    ends, reads = [], 0
    while engine.read(most) is None:
        assert engine._reading is not None
        ends.append(engine._reading.cache.past)
        reads += 1
        assert reads <= len(prompt)
    assert not inside & {*ends}
    assert ends == sorted({*ends})
    engine.close()


def test_pan_and_scan_stays_off(running: Running) -> None:
    """A processor that was saved with it would make more images than the prompt has."""
    processor = tiny("gemma3").processor.image_processor
    processor.do_pan_and_scan = True
    processor.pan_and_scan_min_crop_size, processor.pan_and_scan_max_num_crops = 4, 4
    processor.pan_and_scan_min_ratio_to_activate = 1.2
    family = vision_family(running.model.config, processor, running.tiny.tokenizer)
    long = image(16, 64)
    assert len(family.prepare([long])["pixel_values"]) == 1
    assert family.count(16, 64) == 16


def test_the_newlines_around_an_image_are_one_token_with_those_beside_them(
    running: Running,
) -> None:
    prompt = running.prompt(ask("?", FIRST))
    newlines = running.tiny.tokenizer.convert_tokens_to_ids(3 * "\u010a")
    assert prompt.tokens[prompt.media[0].start - 2] == newlines


def test_an_image_processor_of_another_size_is_refused(running: Running) -> None:
    processor = tiny("gemma3").processor.image_processor
    processor.size = {"height": 24, "width": 24}
    with pytest.raises(ValueError, match="makes images of 24 x 24 pixels.*takes 16 x 16"):
        vision_family(running.model.config, processor, running.tiny.tokenizer)
