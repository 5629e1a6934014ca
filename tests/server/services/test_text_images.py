"""Images in the running text service, on a small vision-language model of random weights."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from guard.config.schema import Config
from guard.errors import ContextExceeded, RequestError
from guard.verdict import Verdict
from server.services.build import build_services
from server.services.interface import SamplingParams, TextRowRequest, TextService
from server.services.text_jobs import TextJob, collect
from steering.prompt import Prompt
from tests.server.running_service import run
from tests.steering.tiny_vision import chat, picture, save, tiny_vision

PLACEHOLDERS = 16
"""Tokens of an image: 4 by 4 patches."""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder: Path = tmp_path_factory.mktemp("seeing")
    save(tiny_vision(), "llava", folder)
    config = Config.model_validate(
        {"models": [{"name": "eyes", "source": str(folder), "device": "cpu", "max_context": 64}]}
    )
    verdicts: list[Verdict] = []
    services = build_services(config, lambda request, verdict: verdicts.append(verdict))
    yield services["eyes"]
    services["eyes"].close()


def request(prompt: Prompt, **sampling: Any) -> TextRowRequest:
    settings = SamplingParams(max_tokens=8, temperature=0.0, **sampling)
    return TextRowRequest(request_id="r", prompt=prompt, policy="none", sampling=settings)


def answers(service: TextService, *requests: TextRowRequest) -> list[Any]:
    async def ask() -> Any:
        deadline = asyncio.get_running_loop().time() + 60
        return await collect(TextJob(service, requests, 1, deadline))

    rows: list[Any] = run(ask)
    return rows


def test_it_says_that_it_sees(service: Any) -> None:
    assert service.info.sees


def test_an_image_changes_the_answer_and_counts_as_its_placeholders(service: Any) -> None:
    text = service.encode_chat(chat("w3 w4"))
    images = [service.encode_chat(chat(picture(seed), "w3 w4")) for seed in (1, 2)]
    assert [len(prompt) - len(text) for prompt in images] == [PLACEHOLDERS] * 2
    together = answers(service, *[request(prompt) for prompt in (text, *images)])
    assert len({row.text for row in together}) == 3
    assert together[1].finished.prompt_tokens == len(text) + PLACEHOLDERS
    alone = answers(service, request(images[0]))
    assert alone[0].text == together[1].text


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (3, 3)])
def test_images_of_odd_sizes_are_taken(service: Any, shape: tuple[int, int]) -> None:
    prompt = service.encode_chat(chat(picture(1, *shape), "w3"))
    (row,) = answers(service, request(prompt))
    assert row.finished.reason in ("stop", "length")


def test_images_count_in_the_context(service: Any) -> None:
    prompt = service.encode_chat(chat(*[picture(i) for i in range(4)], "w3"))
    with pytest.raises(ContextExceeded, match="shorten"):
        answers(service, request(prompt))


def test_a_placeholder_without_an_image_is_refused(service: Any) -> None:
    """Token ids of `/v1/completions` may have one; in a message its name is text."""
    prompt = service.encode_chat(chat(picture(1), "w3"))
    bare = Prompt(prompt.tokens)
    with pytest.raises(RequestError, match="stands for an image"):
        answers(service, request(bare))
    cut = Prompt(prompt.tokens + prompt.tokens[prompt.media[0].start :][:1], prompt.media)
    with pytest.raises(RequestError, match="stands for an image"):
        answers(service, request(cut))
    written = service.encode_chat(chat("w3 <image>"))
    assert not written.media and prompt.tokens[prompt.media[0].start] not in written.tokens


def test_two_choices_of_one_image_are_those_of_two_requests(service: Any) -> None:
    prompt = service.encode_chat(chat(picture(3), "w5"))
    first = request(prompt)
    rows = answers(service, first, replace(first, request_id="s"))
    assert rows[0].text == rows[1].text != ""


def test_pixels_reach_the_model_as_they_are(service: Any) -> None:
    pixels = np.zeros((9, 7, 3), np.uint8)
    prompt = service.encode_chat(chat("w3", pixels, "w4"))
    (media,) = prompt.media
    assert np.array_equal(media.content, pixels)
    assert media.stop - media.start == PLACEHOLDERS
