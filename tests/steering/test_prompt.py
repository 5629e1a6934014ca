from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from steering.prompt import Media, Prompt

PIXELS = np.zeros((2, 4, 3), np.uint8)


def image(start: int, stop: int, content: Any = PIXELS) -> Media:
    return Media("image", content, start, stop)


def test_a_prompt_of_text_is_its_tokens() -> None:
    prompt = Prompt((5, 6, 7))
    assert len(prompt) == 3
    assert prompt == Prompt((5, 6, 7)) != Prompt((5, 6))
    assert prompt.media == () and prompt.positions is None
    prompt.require_text()


def test_an_empty_prompt_is_false() -> None:
    assert not Prompt(())


def test_placeholders_count_as_tokens() -> None:
    prompt = Prompt((5, 9, 9, 6, 9), (image(1, 3), image(4, 5, "cached")))
    assert len(prompt) == 5


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        ([(0, 2), (1, 3)], "must not overlap"),
        ([(2, 3), (0, 1)], "must be sorted"),
        ([(0, 1), (3, 5)], "ends behind the prompt, which has 4 tokens"),
    ],
)
def test_spans_that_do_not_fit_are_refused(spans: list[tuple[int, int]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Prompt((1, 2, 3, 4), tuple(image(start, stop) for start, stop in spans))


def test_spans_may_touch_and_fill_the_prompt() -> None:
    Prompt((1, 2, 3, 4), (image(0, 2), image(2, 4)))


@pytest.mark.parametrize(("start", "stop"), [(1, 1), (2, 1), (-1, 1)])
def test_media_need_a_placeholder(start: int, stop: int) -> None:
    with pytest.raises(ValueError, match="at least one placeholder token"):
        image(start, stop)


@pytest.mark.parametrize(
    "pixels",
    [
        PIXELS.astype(np.float32),
        np.zeros((2, 4), np.uint8),
        np.zeros((2, 4, 4), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
    ],
)
def test_pixels_are_uint8_of_three_channels(pixels: Any) -> None:
    with pytest.raises(ValueError, match=r"give uint8 \[height, width, 3\]"):
        image(0, 1, pixels)


@pytest.mark.parametrize(
    ("positions", "message"),
    [
        ((), "no axis"),
        (((0, 1),), "axis 0 of the positions has 2 entries for 3 tokens"),
        (((0, 1, 2), (0, 1, -1)), "axis 1 of the positions has negative"),
    ],
)
def test_positions_that_do_not_fit_are_refused(positions: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Prompt((1, 2, 3), positions=positions)


def test_a_prompt_goes_on_with_text() -> None:
    """From the largest position of an image, which is smaller than the number of its tokens."""
    text = Prompt((1, 2)).extended([3])
    assert (text.tokens, text.positions, text.next_position) == ((1, 2, 3), None, 3)
    seen = Prompt((1, 9, 9, 9, 9), (image(1, 5),), ((0, 1, 1, 1, 1), (0, 1, 1, 2, 2)))
    assert seen.next_position == 3
    answered = seen.extended((7, 8))
    assert answered.tokens == (1, 9, 9, 9, 9, 7, 8) and answered.media == seen.media
    assert answered.positions == ((0, 1, 1, 1, 1, 3, 4), (0, 1, 1, 2, 2, 3, 4))
    assert seen.extended([]).positions == seen.positions


def test_an_engine_for_text_refuses_the_rest() -> None:
    with pytest.raises(ValueError, match=r"has media \(image\): leave them out"):
        Prompt((1, 2), (image(0, 1),)).require_text()
    with pytest.raises(ValueError, match="has positions: leave them out"):
        Prompt((1, 2), positions=((0, 0), (0, 1), (0, 2))).require_text()


def test_it_needs_no_torch() -> None:
    code = "import sys, steering.prompt; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
