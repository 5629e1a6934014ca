"""Forms: the values of their fields, and bodies that are not forms."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guard.errors import RequestError
from server.wire.forms import MAX_PARTS, MAX_TEXT_BYTES, parse_form
from server.wire.schemas.images import EditRequest


def form(*parts: tuple[str, Any]) -> tuple[bytes, str]:
    """Body and content type, files being those parts that are bytes."""
    files = [
        (name, ("x", value) if isinstance(value, bytes) else (None, value)) for name, value in parts
    ]
    request = httpx.Request("POST", "http://host", files=files)
    return request.read(), request.headers["content-type"]


def parsed(*parts: tuple[str, Any]) -> dict[str, Any]:
    return parse_form(*form(*parts), EditRequest)


def refusal(body: bytes, kind: str) -> RequestError:
    with pytest.raises(RequestError) as caught:
        parse_form(body, kind, EditRequest)
    assert caught.value.status == 400
    return caught.value


def test_texts_stay_texts_and_all_else_is_json() -> None:
    value = parsed(
        ("prompt", "5"), ("user", "null"), ("n", "2"), ("strength", "0.5"), ("stream", "false"),
        ("guard", '{"policy": "p"}'), ("inversion", "true"), ("seed", "null"), ("image", b"\0\xff"),
        ("size", "64x64"), ("strange", "[1]"),
    )  # fmt: skip
    assert value == {
        "prompt": "5", "user": "null", "n": 2, "strength": 0.5, "stream": False,
        "guard": {"policy": "p"}, "inversion": True, "seed": None, "image": b"\0\xff",
        "size": "64x64", "strange": [1],
    }  # fmt: skip


def test_what_is_no_json_is_left_to_the_schema() -> None:
    assert parsed(("n", "two"), ("strength", "NaN")) == {"n": "two", "strength": "NaN"}


def test_the_brackets_of_openais_client_are_read() -> None:
    assert parsed(("image[]", b"x"), ("guard[policy]", "5")) == {
        "image": b"x",
        "guard": {"policy": "5"},
    }
    # what is no text inside is JSON there too
    assert parsed(("guard[policy]", "5"), ("guard[debug]", "true"))["guard"] == {
        "policy": "5",
        "debug": True,
    }
    assert parsed(("guard[other]", "5"))["guard"] == {"other": "5"}


@pytest.mark.parametrize(
    "parts",
    [
        [("image", b"x"), ("image", b"y")],
        [("image[]", b"x"), ("image[]", b"y")],
        [("image", b"x"), ("image[]", b"y")],
        [("prompt", "a"), ("prompt", "b")],
        [("guard[policy]", "a"), ("guard[policy]", "b")],
        [("guard", '{"policy": "a"}'), ("guard[policy]", "b")],
        [("guard", "a"), ("guard[policy]", "b")],
    ],
)
def test_nothing_is_given_twice(parts: list[tuple[str, Any]]) -> None:
    error = refusal(*form(*parts))
    assert error.param == parts[0][0].partition("[")[0] and "more than once" in error.message


def test_json_in_a_field_is_read_by_the_rules_of_bodies() -> None:
    error = refusal(*form(("guard", '{"policy": "a", "policy": "b"}')))
    assert error.param == "policy" and "more than once" in error.message
    assert parsed(("n", "1e999"), ("user", "1e999")) == {"n": "1e999", "user": "1e999"}


def test_a_file_in_a_field_for_text_is_refused() -> None:
    error = refusal(*form(("prompt", b"a cat")))
    assert error.code == "invalid_form" and "'prompt'" in error.message
    assert parsed(("mask", b"x")) == {"mask": b"x"}


def test_a_text_that_is_too_long_or_no_utf8_is_named() -> None:
    error = refusal(*form(("prompt", "x" * (MAX_TEXT_BYTES + 1))))
    assert error.param == "prompt" and str(MAX_TEXT_BYTES) in error.message
    body, kind = form(("prompt", "xyz"))
    assert refusal(body.replace(b"xyz", b"\xff\xfe\xfd"), kind).param == "prompt"


def test_too_many_fields_are_refused() -> None:
    error = refusal(*form(*((f"f{i}", "x") for i in range(MAX_PARTS + 1))))
    assert error.code == "invalid_form" and str(MAX_PARTS) in error.message


def test_what_is_no_whole_form_is_refused() -> None:
    body, kind = form(("prompt", "a cat"), ("image", b"abc"))
    for bad, of in (
        (b"", kind),
        (b"hello", kind),
        (body[:-10], kind),
        (body[: len(body) // 2], kind),
        (body, "multipart/form-data"),
        (body, "multipart/form-data; boundary="),
        (body, "multipart/form-data; boundary=" + "x" * 1000),
        (body, "multipart/form-data; boundary=other"),
        (body.replace(b'name="prompt"', b""), kind),
        (body.replace(b"Content-Disposition", b"X" * 20_000), kind),
    ):
        assert refusal(bad, of).code == "invalid_form"


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=300), st.integers(0, 200))
def test_damage_is_refused_or_read_never_a_fault(noise: bytes, at: int) -> None:
    body, kind = form(("prompt", "a cat"), ("image", b"abc"), ("n", "1"))
    try:
        value = parse_form(body[:at] + noise + body[at:], kind, EditRequest)
    except RequestError:
        return
    assert isinstance(value, dict)
