from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from server.wire.image_files import FORMATS, encode_image

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 9, 3), np.uint8)


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_has_the_requested_format_and_size(name: str) -> None:
    image = Image.open(io.BytesIO(encode_image(PIXELS, FORMATS[name])))
    assert image.format == FORMATS[name].name and image.size == (9, 5) and image.mode == "RGB"


def test_png_is_lossless() -> None:
    image = Image.open(io.BytesIO(encode_image(PIXELS, FORMATS["png"])))
    assert np.array_equal(np.asarray(image), PIXELS)


@pytest.mark.parametrize("name", [name for name, form in FORMATS.items() if form.lossy])
def test_a_higher_quality_makes_larger_files(name: str) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8)
    sizes = [len(encode_image(noise, FORMATS[name], quality)) for quality in (0, 50, 100)]
    assert sizes == sorted(set(sizes))
    assert len(encode_image(noise, FORMATS[name])) == sizes[-1]
