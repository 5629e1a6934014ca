"""The images of a body: what is read of them, and what follows."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from PIL import Image

from classifiers.images.encoder import Pixels
from classifiers.images.ocr import TooMuchText
from guard.config.policy_schema import ScreenConfig
from guard.data.image_files import decode_readings
from guard.plans.image_screens import ImageClassifier, ImageClassifiers
from guard.plans.screens import ImageScreen, TextPlan, TextScreen
from server.screening.answers.upstream_errors import screen_error
from server.screening.bodies.images import without_parts
from server.screening.bodies.texts import JsonText, texts_of
from server.screening.errors import UnreadableAnswer, UnreadableImage
from server.screening.findings import Findings, ScreenedText
from server.screening.images.reading import screen_images, unread
from server.screening.images.screener import ImageReading, ImageScreener, WantedImage
from server.screening.spans import Span
from server.screening.texts.redaction import Placeholders
from server.screening.texts.turns import Caller
from tests.classifiers.images.tiny_encoder import file_of

RED = ImageScreen("red", "c", "image-screen", 0.5, "block", head=0, encoder="colours")
LIST = TextScreen("list", "c", "patterns", 1.0, "block")
ADDRESS = "https://images.example/1.png"
DATA = "data:image/png;base64,AAAA"
CODED = base64.b64encode(file_of("red")).decode()
URL = f"data:image/png;base64,{CODED.rstrip('=')}"


@pytest.mark.parametrize(
    ("body", "place", "expected"),
    [
        ({"messages": [{"role": "user", "content": [
            {"type": "image_url", "image_url": {"url": DATA}}]}]}, "user",
         [("messages[0].content[0].image_url.url", "user", DATA)]),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": DATA}]}]},
         "user", [("input[0].content[0].image_url", "user", DATA)]),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}]},
         "user", [("input[0].content[0]", "user", None)]),
        ({"input": [{"type": "image_generation_call", "id": "ig"}]}, "user",
         [("input[0]", "user", None)]),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {
            "type": "base64", "media_type": "image/png", "data": "AAAA"}}]}]},
         "user", [("messages[0].content[0].source.data", "user", "AAAA")]),
        ({"prompt": "x", "image": DATA}, "images", [("image", "images", DATA)]),
        ({"prompt": "x", "image": b"file", "mask": b"mask"}, "images",
         [("image", "images", b"file"), ("mask", "images", b"mask")]),
        ({"images": [{"image_url": "AA AA"}]}, "images",
         [("images[0].image_url", "images", "AA AA")]),
        ({"data": [{"b64_json": "AAAA"}, {"url": ADDRESS}]}, "response",
         [("data[0].b64_json", "response", "AAAA"), ("data[1].url", "response", ADDRESS)]),
        ({"type": "image_generation.completed", "b64_json": "AAAA"}, "response",
         [("b64_json", "response", "AAAA")]),
        ({"output": [{"type": "image_generation_call", "result": None}]}, "response", []),
        ({"messages": [{"role": "user", "content": f"![a]({URL}) and <img src='{URL}A'>"}]}, "user",
         [("messages[0].content", "user", URL), ("messages[0].content", "user", URL + "A")]),
        ({"messages": [{"role": "user", "content": f'{{"a": "see {URL}"}} also {URL}A'}]}, "user",
         [("messages[0].content.a", "user", URL), ("messages[0].content", "user", URL + "A")]),
        ({"messages": [{"role": "user", "content": "write data:image/png;base64,... before it"}]},
         "user", []),
        ({"prompt": "x", "image": CODED, "mask": "a word", "images": [CODED]}, "images",
         [("image", "images", CODED), ("images[0]", "images", CODED)]),
        ({"prompt": CODED, "image": "_9j_4AAQSkZJRgABAQ"}, "images",
         [("image", "images", "_9j_4AAQSkZJRgABAQ")]),
        ({"messages": [{"role": "assistant", "tool_calls": [{"function": {
            "arguments": json.dumps({"images": [DATA, DATA + "A", DATA]})}}]}]}, "user",
         [("messages[0].tool_calls[0].function.arguments.images", "arguments", value)
          for value in (DATA, DATA + "A")]),
        ({"choices": [{"message": {"content": f"see {ADDRESS}"}}]}, "response", []),
    ],
)  # fmt: skip
def test_every_image_is_found(
    body: dict[str, Any], place: Any, expected: list[tuple[str, str, Any]]
) -> None:
    images = without_parts(texts_of(body, place).images)
    assert [(image.path, image.place, image.value) for image in images] == expected


class _Reader:
    def __init__(self, *readings: ImageReading) -> None:
        self.readings = readings
        self.wanted: Sequence[WantedImage] = ()

    async def read_images(self, images: Sequence[WantedImage]) -> Sequence[ImageReading]:
        self.wanted = images
        return self.readings


def _plan(on_error: Any = "closed", *, ocr: bool = False, **named: Any) -> TextPlan:
    fields: dict[str, Any] = {"images": (RED,), **named}
    screens = (LIST,) if ocr else ()
    return TextPlan("p", on_error, ScreenConfig(ocr=ocr), screens, {}, **fields)


def _scored(score: float, text: str = "") -> ImageReading:
    return ImageReading({"colours": np.array([score], np.float32)}, text)


BODY = {"data": [{"b64_json": "AAAA"}, {"b64_json": "BBBB"}]}


def _screen(plan: TextPlan, *readings: ImageReading) -> tuple[Any, Findings, _Reader, Any]:
    findings, reader, texts = Findings(plan), _Reader(*readings), texts_of(BODY, "response")
    run = screen_images(texts, findings, reader, in_response=True)
    return asyncio.run(run), findings, reader, texts


def test_blocked_images_are_told_by_their_places() -> None:
    blocked, findings, reader, _ = _screen(_plan(), _scored(0.2), _scored(0.9))
    assert [piece.path for piece in blocked] == ["data[1].b64_json"]
    (verdict,) = findings.guards()
    assert verdict.place == "data[1].b64_json" and verdict.score == pytest.approx(0.9)
    assert [(wanted.encoders, wanted.ocr) for wanted in reader.wanted] == [({"colours"}, False)] * 2


def test_text_in_an_image_is_read_as_a_text_that_cannot_be_rewritten() -> None:
    plan = _plan(ocr=True, images=())
    blocked, _, reader, texts = _screen(plan, ImageReading(text="said"), ImageReading())
    assert not blocked and all(wanted.ocr for wanted in reader.wanted)
    said = [piece for piece in texts.pieces if piece.text == "said"]
    assert [(piece.path, piece.is_key) for piece in said] == [("data[0].b64_json", True)]


def test_nothing_is_read_where_no_screen_looks() -> None:
    screen = ImageScreen("red", "c", "m", 0.5, "block", 0, frozenset({"user"}), "colours")
    blocked, _, reader, texts = _screen(_plan(images=(screen,)))
    assert not blocked and not reader.wanted
    assert "pictures" in unread(texts, _plan(images=(screen,)))
    assert not unread(texts, _plan())


def test_a_fault_ends_a_closed_policy_and_is_told_by_an_open_one() -> None:
    fault = ImageReading(fault="it is damaged")
    with pytest.raises(UnreadableAnswer, match="damaged"):
        _screen(_plan(), _scored(0.1), fault)
    blocked, findings, *_ = _screen(_plan("open"), _scored(0.1), fault)
    assert not blocked and findings.outcome == "error" and findings.unscreened == {"pictures"}
    with pytest.raises(UnreadableImage, match="damaged"):
        texts = texts_of({"image": b"x"}, "images")
        asyncio.run(screen_images(texts, Findings(_plan()), _Reader(fault)))


def test_the_scores_of_a_reading_with_a_fault_count() -> None:
    fault = ImageReading({"colours": np.array([0.9], np.float32)}, fault="no text")
    blocked, findings, *_ = _screen(_plan("open"), _scored(0.1), fault)
    assert [piece.path for piece in blocked] == ["data[1].b64_json"]
    assert findings.unscreened == {"pictures"} and findings.guards()[0].fired


class _Texts:
    async def read(self, texts: Sequence[str], screens: Any, tail: int | None = None) -> Any:
        return [[ScreenedText(LIST, 1.0, (Span(0, 1, "x"),))] for _ in texts]


def test_an_error_with_an_image_whose_text_is_blocked_stays() -> None:
    images: Any = [JsonText(None, "", "said", "response", "error.message", -1, "key")]
    findings, placeholders = Findings(_plan(ocr=True)), Placeholders(())
    run = screen_error((), images, findings, _Texts(), placeholders, own_app=False)
    assert asyncio.run(run) is None


class _Colours:
    """Counts what it is given; the score is the share of red."""

    def __init__(self) -> None:
        self.given = 0

    def scores(self, images: Sequence[Pixels]) -> np.ndarray:
        self.given += len(images)
        return np.array([[image[..., 0].mean() / 255] for image in images], np.float32)


def _read(
    files: Sequence[bytes],
    colours: _Colours,
    tenants: Sequence[str] = ("",),
    *,
    ocr: Any = None,
    reads_text: bool = False,
) -> list[ImageReading]:
    async def run() -> list[ImageReading]:
        classifiers: Mapping[str, ImageClassifier] = {"colours": colours}  # type: ignore[dict-item]
        screener = ImageScreener(ImageClassifiers(classifiers, ocr))
        images = [image for file in files for image in texts_of({"image": file}, "images").images]
        wanted = [WantedImage(image, frozenset({"colours"}), reads_text) for image in images]
        try:
            return [
                reading
                for tenant in tenants
                for reading in await screener.read(wanted, Caller(tenant))
            ]
        finally:
            screener.close()

    return asyncio.run(run())


def test_an_image_is_read_once_for_each_tenant() -> None:
    colours, file = _Colours(), file_of("#800000")
    readings = _read([file, file], colours, ("a", "a", "b"))
    assert colours.given == 2 and len(readings) == 6
    for reading in readings:
        assert float(reading.scores["colours"][0]) == pytest.approx(128 / 255, abs=1e-6)


class _Failing(_Colours):
    def scores(self, images: Sequence[Pixels]) -> np.ndarray:
        if images[0][0, 0, 2] == 255:
            raise RuntimeError("/a/path")
        return super().scores(images)


def test_an_image_that_fails_leaves_the_others() -> None:
    failed, read = _read([file_of("blue"), file_of("red")], _Failing())
    assert "the log has the reason" in str(failed.fault) and "/a/path" not in str(failed.fault)
    assert read.fault is None and read.scores["colours"][0] == 1


class _TooMuch:
    def read(self, image: Pixels) -> str:
        raise TooMuchText()


@pytest.mark.parametrize(("ocr", "fault"), [(None, None), (_TooMuch(), "more text than is read")])
def test_scores_stay_where_the_text_is_not_read(ocr: Any, fault: str | None) -> None:
    (reading,) = _read([file_of("red")], _Colours(), ocr=ocr, reads_text=True)
    assert reading.scores["colours"][0] == 1
    assert (fault or "None") in str(reading.fault)


def test_images_have_a_budget_of_pixels_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("guard.data.image_files.MAX_PIXELS_TOGETHER", 500)
    monkeypatch.setattr("guard.data.image_files.PixelBudget.__init__.__defaults__", (500,))
    files = [file_of(colour) for colour in ("red", "green", "blue")]
    faults = [reading.fault for reading in _read(files, _Colours())]
    assert faults[:2] == [None, None] and "together" in str(faults[2])


def test_an_image_is_read_upright_and_as_it_is_stored() -> None:
    stored = Image.new("RGB", (20, 12), "blue")
    stored.paste("red", (0, 0, 10, 12))
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    stored.save(buffer, "PNG", exif=exif)
    upright, bare = decode_readings(buffer.getvalue())
    assert upright.shape == (20, 12, 3) and bare.shape == (12, 20, 3)
    assert len(decode_readings(file_of("red"))) == 1


def test_an_image_whose_text_is_read_takes_more_turns() -> None:
    """Between two texts in images of one caller, some ten images of another are judged."""
    order: list[str] = []

    class _Reads:
        def read(self, _image: Pixels) -> str:
            order.append("text")
            return ""

    class _Noted(_Colours):
        def scores(self, images: Sequence[Pixels]) -> np.ndarray:
            order.append("scores")
            return super().scores(images)

    async def run() -> None:
        noted: Mapping[str, ImageClassifier] = {"colours": _Noted()}  # type: ignore[dict-item]
        screener = ImageScreener(ImageClassifiers(noted, _Reads()))  # type: ignore[arg-type]

        def wanted(colour: str, encoders: Sequence[str], ocr: bool) -> WantedImage:
            (image,) = texts_of({"image": file_of(colour)}, "images").images
            return WantedImage(image, frozenset(encoders), ocr)

        texts = [wanted(f"#0000{level:02x}", (), True) for level in range(3)]
        plain = [wanted(f"#{level:02x}0000", ("colours",), False) for level in range(12)]
        many = asyncio.create_task(screener.read(texts, Caller("many")))
        one = asyncio.create_task(screener.read(plain, Caller("one")))
        await asyncio.gather(many, one)
        screener.close()

    asyncio.run(run())
    first, second, _ = (place for place, what in enumerate(order) if what == "text")
    assert order[first:second].count("scores") >= 8 and order.count("scores") == 12
