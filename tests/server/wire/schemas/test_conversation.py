"""Images as the three chat APIs bring them: which spellings are taken, and what is refused."""

from __future__ import annotations

import base64
import io
import textwrap
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image

from guard.data.image_files import MAX_PIXELS_KEPT
from guard.errors import RequestError
from server.wire import uploads
from server.wire.schemas.conversation import ImageUpload
from server.wire.uploads import decode_uploads

COLOURS = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)


def file_of(pixels: Any = COLOURS, form: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form, **options)
    return file.getvalue()


CODED = base64.b64encode(file_of()).decode()


def pixels_of(url: str) -> Any:
    (pixels,) = decode_uploads([ImageUpload.of_url(url, "here")])
    return pixels


def refusal(url: str) -> str:
    with pytest.raises(RequestError) as caught:
        pixels_of(url)
    assert (caught.value.status, caught.value.type) == (400, "invalid_request_error")
    assert caught.value.param == "here"
    return caught.value.message


@pytest.mark.parametrize(
    "url",
    [
        f"data:image/png;base64,{CODED}",
        f"DATA:IMAGE/PNG;BASE64,{CODED}",
        f"  data:image/png;base64,{CODED}\n",
        f"data:image/jpg;base64,{CODED}",  # no type at all, and not that of the bytes
        f"data:image/webp;base64,{CODED}",
        f"data:;base64,{CODED}",
        f"data:image/png;charset=utf-8;name=a.png;base64,{CODED}",
        f"data:image/png;base64,{CODED.rstrip('=')}",
        "data:image/png;base64," + CODED.replace("+", "-").replace("/", "_"),
        "data:image/png;base64," + quote(CODED, safe=""),
        "data:image/png;base64," + "\r\n".join(textwrap.wrap(CODED, 76)),
    ],
)
def test_data_urls_are_taken_as_clients_spell_them(url: str) -> None:
    assert "+" in CODED and "/" in CODED and CODED.endswith("=")
    assert np.array_equal(pixels_of(url), COLOURS)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("", "is empty"),
        ("  ", "is empty"),
        ("https://example.com/cat.png", "fetches no URLs"),
        ("HTTP://169.254.169.254/", "fetches no URLs"),
        ("file:///etc/passwd", "opens no files"),
        ("/etc/passwd", "opens no files"),
        ("cat.png", "send a data URL"),
        (CODED, "send a data URL"),
        ("data:image/png;base64", "without a comma"),
        (f"data:image/png,{CODED}", "not encoded as base64"),
        (f"data:image/png;base64;charset=utf-8,{CODED}", "not encoded as base64"),
        ("data:image/png;base64,@@@@", "not valid base64"),
        ("data:image/png;base64,é", "not valid base64"),
        # a form has read each + as a space: without them the file would be another one
        ("data:image/png;base64," + CODED.replace("+", " "), "not valid base64"),
        ("data:image/png;base64,A", "not valid base64"),
        ("data:image/png;base64,", "no bytes"),
        (f"data:image/png;base64,{CODED[: len(CODED) // 2]}", "damaged"),
        ("data:image/svg+xml;base64," + base64.b64encode(b"<svg/>").decode(), "image/svg+xml"),
        ("data:image/png;base64," + base64.b64encode(b"<svg/>").decode(), "no PNG, JPEG or WebP"),
        (f"data:application/pdf;base64,{CODED}", "application/pdf"),
        (f"data:text/html;base64,{CODED}", "text/html"),
    ],
)
def test_what_is_no_image_is_refused_with_its_reason(url: str, reason: str) -> None:
    assert reason in refusal(url)


def test_an_exact_type_must_be_that_of_the_bytes() -> None:
    def upload(media_type: str) -> ImageUpload:
        return ImageUpload(CODED, media_type, "here", is_exact=True)

    (pixels,) = decode_uploads([upload("image/png")])
    assert np.array_equal(pixels, COLOURS)
    with pytest.raises(RequestError) as caught:
        decode_uploads([upload("image/jpeg")])
    assert "it is image/png, not image/jpeg" in caught.value.message


def test_a_file_of_too_many_bytes_is_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "MAX_IMAGE_BYTES", len(file_of()))
    pixels_of(f"data:image/png;base64,{CODED}")
    monkeypatch.setattr(uploads, "MAX_IMAGE_BYTES", len(file_of()) - 1)
    assert "more than" in refusal(f"data:image/png;base64,{CODED}")
    monkeypatch.setattr(uploads, "MAX_IMAGE_BYTES", 20)
    assert "more than 20 bytes" in refusal(f"data:image/png;base64,{CODED}")


def test_each_image_keeps_its_size_and_its_place() -> None:
    shapes = [(1, 1, 3), (3, 200, 3), (40, 3, 3)]
    files = [file_of(np.full(shape, 7 * i, np.uint8)) for i, shape in enumerate(shapes)]
    urls = [f"data:image/png;base64,{base64.b64encode(file).decode()}" for file in files]
    images = decode_uploads([ImageUpload.of_url(url, "here") for url in urls])
    assert [image.shape for image in images] == shapes
    assert [int(image.max()) for image in images] == [0, 7, 14]


def test_images_together_have_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    file = file_of(np.zeros((40, 50, 3), np.uint8))
    url = f"data:image/png;base64,{base64.b64encode(file).decode()}"
    both = [ImageUpload.of_url(url, name) for name in ("first", "second")]
    assert len(decode_uploads(both)) == 2
    monkeypatch.setattr("guard.data.image_files.PixelBudget.__init__.__defaults__", (3999,))
    with pytest.raises(RequestError) as caught:
        decode_uploads(both)
    assert caught.value.param == "second"
    assert "more than 3999 pixels together" in caught.value.message


def test_a_large_image_is_reduced_in_its_proportions() -> None:
    pixels = np.zeros((1000, 8000, 3), np.uint8)
    pixels[:, 4000:] = 255
    url = f"data:image/png;base64,{base64.b64encode(file_of(pixels)).decode()}"
    height, width, _ = pixels_of(url).shape
    assert 0.99 * MAX_PIXELS_KEPT < height * width <= MAX_PIXELS_KEPT
    assert abs(width / height - 8) < 0.02
