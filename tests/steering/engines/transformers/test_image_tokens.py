"""Tokens of images: their pixels, their sampling, and folders that do not fit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from steering.engines.transformers.image_tokens import (
    AUTOENCODER,
    CODEBOOK,
    IMAGE_TOKENS,
    ImageTokens,
    writes_images,
)
from tests.server.tiny_token_images import CODES, COLUMNS, ROWS, SETTINGS, save_model

Change = Callable[[Path], object]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_model(tmp_path)
    return tmp_path


def vocabulary(folder: Path) -> int:
    return int(json.loads((folder / "config.json").read_text("utf-8"))["vocab_size"])


def loaded(folder: Path) -> ImageTokens:
    return ImageTokens.load(folder, vocabulary(folder), "cpu")


def test_an_image_is_its_tokens_vectors_row_by_row(folder: Path) -> None:
    images = loaded(folder)
    assert (images.count, images.size) == (ROWS * COLUMNS, (4 * COLUMNS, 4 * ROWS))
    tokens = [images.first + (7 * i) % CODES for i in range(images.count)]
    latents = torch.zeros(1, images.codes.shape[1], ROWS, COLUMNS)
    for place, token in enumerate(tokens):
        latents[0, :, place // COLUMNS, place % COLUMNS] = images.codes[token - images.first]
    with torch.no_grad():
        decoded = images.autoencoder.decode(latents).sample[0]
    expected = (255 * (decoded / 2 + 0.5).clamp(0, 1)).round().byte().permute(1, 2, 0).numpy()
    other, image = images.pixels([tokens[::-1], tokens])
    assert np.array_equal(image, expected) and not np.array_equal(other, expected)


def test_no_token_of_text_is_sampled(folder: Path) -> None:
    images = loaded(folder)
    sampling = images.sampling(3)
    assert (sampling.seed, sampling.temperature, sampling.top_p) == (3, 1.0, 0.95)
    assert dict(sampling.logit_bias) == dict.fromkeys(range(vocabulary(folder) - CODES), -np.inf)


def _without_codes(folder: Path) -> None:
    (folder / AUTOENCODER / CODEBOOK).unlink()


def _codes(*shape: int) -> Change:
    return lambda folder: save_file({"codes": torch.ones(shape)}, folder / AUTOENCODER / CODEBOOK)


def _infinite(folder: Path) -> None:
    save_file({"codes": torch.full((CODES, 2), torch.inf)}, folder / AUTOENCODER / CODEBOOK)


def _settings(**changed: object) -> Change:
    return lambda folder: (folder / IMAGE_TOKENS).write_text(json.dumps(SETTINGS | changed))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_without_codes, "cannot be read"),
        (_codes(CODES, 3), "no room"),
        (_codes(500, 2), "no room"),
        (_codes(CODES), "no room"),
        (_infinite, "no numbers"),
        (_settings(rows=0), "no size"),
        (_settings(columns=None), "cannot be read"),
        (_settings(temperature=0.0), "sampling"),
        (_settings(top_p=1.5), "sampling"),
    ],
)
def test_a_folder_that_does_not_fit_is_refused(folder: Path, change: Change, words: str) -> None:
    change(folder)
    with pytest.raises(ValueError, match=words):
        loaded(folder)


def test_only_a_folder_with_image_tokens_writes_images(folder: Path) -> None:
    assert writes_images(folder)
    (folder / IMAGE_TOKENS).unlink()
    assert not writes_images(folder) and not writes_images(Path("owner/name"))
