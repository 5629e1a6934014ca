"""Uploaded images: accepted formats, the decoded pixels, and files that are refused."""

from __future__ import annotations

import io
import json
import struct
import subprocess
import sys
import zlib
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from guard.data.image_files import MAX_PIXELS
from guard.errors import RequestError
from server.wire.uploads import decode_upload

RED, BLUE, GREEN = (255, 0, 0), (0, 0, 255), (0, 255, 0)


def saved(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def halves(mode: str = "RGB", size: tuple[int, int] = (16, 16)) -> Image.Image:
    """Red on the left, blue on the right."""
    image = Image.new("RGB", size, RED)
    image.paste(BLUE, (size[0] // 2, 0, *size))
    return image.convert(mode)


def decoded(file: bytes, width: int = 16, height: int = 16) -> NDArray[np.uint8]:
    pixels = decode_upload(file, width=width, height=height)
    assert pixels.dtype == np.uint8 and pixels.shape == (height, width, 3)
    return pixels


def refusal(file: bytes) -> str:
    with pytest.raises(RequestError) as caught:
        decode_upload(file, width=16, height=16)
    assert (caught.value.status, caught.value.param) == (400, "image")
    return caught.value.message


def near(pixel: Any, colour: tuple[int, int, int], by: int = 40) -> bool:
    return bool((np.abs(np.asarray(pixel, int) - colour) <= by).all())


def png(width: int, height: int, data: bytes, *, bits: int = 8, kind: int = 2) -> bytes:
    """A PNG whose header and data need not agree."""

    def chunk(name: bytes, body: bytes) -> bytes:
        check = zlib.crc32(name + body)
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


# -- accepted formats ---------------------------------------------------------------------------


@pytest.mark.parametrize(("form", "options"), [("PNG", {}), ("WEBP", {"lossless": True})])
def test_an_image_of_the_models_size_is_not_changed(form: str, options: Any) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    assert np.array_equal(decoded(saved(Image.fromarray(noise), form, **options)), noise)


@pytest.mark.parametrize("form", ["JPEG", "WEBP"])
def test_lossy_files_come_near(form: str) -> None:
    pixels = decoded(saved(halves(), form, quality=95))
    assert near(pixels[8, 2], RED) and near(pixels[8, 13], BLUE)


@pytest.mark.parametrize("mode", ["P", "RGBA"])
def test_palettes_and_opaque_alpha_change_nothing(mode: str) -> None:
    assert np.array_equal(decoded(saved(halves(mode))), np.asarray(halves()))


@pytest.mark.parametrize("progressive", [False, True])
def test_cmyk_becomes_rgb(progressive: bool) -> None:
    pixels = decoded(saved(halves("CMYK"), "JPEG", quality=100, progressive=progressive))
    assert near(pixels[8, 2], RED) and near(pixels[8, 13], BLUE)


@pytest.mark.parametrize("mode", ["L", "1"])
def test_grey_becomes_rgb(mode: str) -> None:
    assert (decoded(saved(Image.new(mode, (16, 16), 255))) == 255).all()


def test_sixteen_bits_become_eight() -> None:
    grey = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    assert np.array_equal(decoded(saved(Image.fromarray(grey)))[..., 0], grey >> 8)
    row = b"\0" + struct.pack(">HHH", 0xFF00, 0x8000, 0x0100) * 16
    pixels = decoded(png(16, 16, row * 16, bits=16))
    assert (pixels == (0xFF, 0x80, 0x01)).all()


def test_transparent_pixels_become_white() -> None:
    layer = halves("RGBA")
    layer.putalpha(Image.new("L", (16, 16), 0))
    assert (decoded(saved(layer)) == 255).all()
    layer.putalpha(Image.new("L", (16, 16), 128))
    assert near(decoded(saved(layer, "WEBP", lossless=True))[8, 2], (255, 127, 127), 2)
    palette = halves("P")
    clear = saved(palette, transparency=palette.getpixel((2, 8)))
    pixels = decoded(clear)
    assert (pixels[8, 2] == 255).all() and near(pixels[8, 13], BLUE, 2)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize(
    ("orientation", "red"), [(1, (8, 2)), (3, (8, 13)), (6, (2, 8)), (8, (13, 8))]
)
def test_an_image_is_rotated_by_its_exif_data(
    form: str, orientation: int, red: tuple[int, int]
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = decoded(saved(halves(), form, exif=exif.tobytes()))
    assert near(pixels[red], RED) and near(pixels[15 - red[0], 15 - red[1]], BLUE)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_the_one_that_pillow_makes_of_it(orientation: int) -> None:
    from PIL import ImageOps

    noise = np.random.default_rng(1).integers(0, 256, (16, 16, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = saved(Image.fromarray(noise), exif=exif.tobytes())
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(file)))
    assert np.array_equal(decoded(file), np.asarray(expected))


def test_an_image_of_another_shape_is_cropped_and_of_another_size_resized() -> None:
    wide = Image.new("RGB", (96, 32), GREEN)
    wide.paste(halves(size=(32, 32)), (32, 0))
    pixels = decoded(saved(wide))
    assert near(pixels[8, 2], RED) and near(pixels[8, 13], BLUE)
    tall = decoded(saved(wide.rotate(90, expand=True)), width=8, height=16)
    assert tall.shape == (16, 8, 3)


def test_one_pixel_is_an_image() -> None:
    assert (decoded(saved(Image.new("RGB", (1, 1), RED))) == RED).all()


# -- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "file",
    [b"GIF89a" + b"\0" * 64, b"BM" + b"\0" * 64, b"II*\0" + b"\0" * 64, b"<svg/>", b"hello", b"\0"],
)
def test_other_formats_than_png_jpeg_and_webp_are_refused(file: bytes) -> None:
    assert "no PNG, JPEG or WebP" in refusal(file)


def test_an_empty_file_is_refused() -> None:
    assert "no bytes" in refusal(b"")


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_truncated_file_is_refused(form: str, share: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    file = saved(Image.fromarray(noise), form)
    assert "damaged" in refusal(file[: int(len(file) * share)])


@pytest.mark.parametrize("magic", [b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF\0\0\0\0WEBP"])
def test_noise_after_a_valid_header_is_refused(magic: bytes) -> None:
    rng = np.random.default_rng(0)
    for size in (0, 3, 30, 300, 3000):
        assert "cannot be used" in refusal(magic + rng.bytes(size))


def test_a_decompression_bomb_is_refused_by_its_header() -> None:
    rows = zlib.compress(b"\0" * 1000)
    assert f"{MAX_PIXELS} are the most" in refusal(png(10_000, 10_000, rows))
    header = b"\xff\xd8\xff\xc0\0\x11\x08" + struct.pack(">HH", 10_000, 10_000)
    jpeg = header + b"\3\1\x11\0\2\x11\0\3\x11\0" + b"\xff\xda\0\x0c\3\1\0\2\0\3\0\0\x3f\0"
    assert "are the most" in refusal(jpeg + b"\0" * 100)
    for body in (
        b"VP8X" + struct.pack("<I", 10) + b"\0" * 4 + b"\x0f\x27\0" * 2,
        b"VP8L"
        + struct.pack("<I", 10)
        + b"\x2f"
        + struct.pack("<I", 9999 | 9999 << 14)
        + b"\0" * 5,
        b"VP8 "
        + struct.pack("<I", 10)
        + b"\0\0\0\x9d\x01\x2a"
        + struct.pack("<HH", 10_000, 10_000),
    ):
        assert "10000 x 10000" in refusal(
            b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body
        )


def test_a_header_that_lies_about_the_size_is_caught() -> None:
    row = b"\0" + bytes(RED) * 16
    assert "damaged" in refusal(png(64, 64, row * 16)), "less than it says"
    assert (decoded(png(16, 16, row * 1000)) == RED).all(), "what is too much is not looked at"


@pytest.mark.parametrize("form", ["PNG", "WEBP"])
def test_animations_are_refused(form: str) -> None:
    file = saved(halves(), form, save_all=True, append_images=[Image.new("RGB", (16, 16))])
    assert "animated" in refusal(file)


def test_no_other_plugin_of_pillow_is_reached() -> None:
    """Nor by a JPEG with a multi-picture header, which Pillow opens with another plugin."""
    file = saved(halves(), "MPO", save_all=True, append_images=[halves()])
    assert file.startswith(b"\xff\xd8\xff")
    code = (
        "import json, sys\n"
        "from server.wire.uploads import decode_upload\n"
        f"file = bytes.fromhex('{file.hex()}')\n"
        "print(decode_upload(file, width=16, height=16).shape)\n"
        "plugins = {n[4:] for n in sys.modules if n.startswith('PIL.') and n.endswith('Plugin')}\n"
        "print(json.dumps(sorted(plugins)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    shape, plugins = done.stdout.splitlines()
    assert shape == "(16, 16, 3)"
    # TiffImagePlugin reads Exif data: an index of numbers, no image
    assert set(json.loads(plugins)) <= {
        *("PngImagePlugin", "JpegImagePlugin", "WebPImagePlugin", "TiffImagePlugin"),
    }


def test_a_jpeg_of_thousands_of_scans_is_not_decoded() -> None:
    file = io.BytesIO()
    Image.new("RGB", (64, 64)).save(file, "JPEG", progressive=True)
    whole = file.getvalue()
    scan = whole[whole.rfind(b"\xff\xda") : -2]
    decode_upload(whole[:-2] + 10 * scan + whole[-2:], width=8, height=8)
    assert "scans" in refusal(whole[:-2] + 100 * scan + whole[-2:])
