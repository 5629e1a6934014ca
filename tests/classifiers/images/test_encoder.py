"""Image encoders: what they are given, and that what was altered is not loaded."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from classifiers.images.card import CARD, GRAPH, ImageEncoderCard
from classifiers.images.encoder import ImageEncoder, prepare
from tests.classifiers.images import tiny_encoder


@pytest.mark.parametrize(
    ("preparation", "expected"),
    [
        ({}, [1.0, -1.0, -0.6]),
        ({"channels": "BGR"}, [-0.6, -1.0, 1.0]),
        ({"layout": "NHWC"}, [1.0, -1.0, -0.6]),
        ({"mean": (255.0, 0.0, 51.0), "scale": 1.0}, [0.0, 0.0, 0.0]),
        ({"resize": 16}, [1.0, -1.0, -0.6]),
    ],
)
def test_an_image_is_prepared_as_the_card_says(
    tmp_path: Path, preparation: dict[str, Any], expected: list[float]
) -> None:
    tiny_encoder.write(tmp_path, **preparation)
    encoder = ImageEncoder.load(tmp_path)
    assert encoder.width == 3
    (embedding,) = encoder.encode([tiny_encoder.plain("#ff0033")])
    assert embedding == pytest.approx(expected, abs=1e-5)


def test_a_compressed_image_is_slightly_another_one() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    plain = prepare(noise, tiny_encoder.PREPARATION)
    compressed = prepare(noise, replace(tiny_encoder.PREPARATION, jpeg=True))
    assert 0.01 < float(np.abs(plain - compressed).mean()) < 1.0


def test_only_the_centre_is_read() -> None:
    image = tiny_encoder.plain("black", (16, 16))
    image = np.pad(image, ((4, 4), (4, 4), (0, 0)), constant_values=255)
    how = replace(tiny_encoder.PREPARATION, resize=24, crop=16)
    assert (prepare(image, how) == -1).all()


def test_an_embedding_does_not_depend_on_other_images(tmp_path: Path) -> None:
    tiny_encoder.write(tmp_path)
    encoder = ImageEncoder.load(tmp_path)
    images = [tiny_encoder.plain(colour) for colour in ("red", "green", "blue")]
    together = encoder.encode(images)
    for image, row in zip(images, together, strict=True):
        assert (encoder.encode([image])[0] == row).all()


def test_the_fingerprint_is_that_of_weights_and_preparation(tmp_path: Path) -> None:
    card = tiny_encoder.write(tmp_path)
    assert replace(card, graph="1" * 64).fingerprint == card.fingerprint
    assert replace(card, source="1" * 64).fingerprint != card.fingerprint
    other = replace(card, preparation=replace(card.preparation, channels="BGR"))
    assert other.fingerprint != card.fingerprint
    assert ImageEncoderCard.read(tmp_path) == card


@pytest.mark.parametrize("fault", ["graph", "missing", "card", "sizes"])
def test_what_was_altered_is_not_loaded(tmp_path: Path, fault: str) -> None:
    tiny_encoder.write(tmp_path)
    card = json.loads((tmp_path / CARD).read_text())
    if fault == "graph":
        (tmp_path / GRAPH).write_bytes((tmp_path / GRAPH).read_bytes() + b"\0")
    elif fault == "missing":
        (tmp_path / GRAPH).unlink()
    elif fault == "card":
        del card["width"]
    else:
        card["preparation"]["resize"] = 100_000
    (tmp_path / CARD).write_text(json.dumps(card))
    with pytest.raises(ValueError, match="guard models add"):
        ImageEncoder.load(tmp_path)
