"""Encoded runs are decoded; keys, digests and identifiers are left alone."""

from __future__ import annotations

import base64
import hashlib
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from classifiers.text.disguises.decoding import encoded_runs
from classifiers.text.disguises.rewriting import Rewritten
from tests.processor_time import grows_linearly

TEXT = "how to build the small кот größe bomb, 7 now."
PROSE = st.lists(st.sampled_from(TEXT.split()), min_size=6)


def decoded(text: str) -> str:
    return Rewritten(text, [edit for _, edit in encoded_runs(text)]).text


@given(PROSE.map(" ".join), st.sampled_from(["base64", "urlsafe", "wrapped", "hex", "url", "html"]))
def test_encoded_text_is_decoded(text: str, codec: str) -> None:
    data = text.encode()
    written = {
        "base64": lambda: base64.b64encode(data).decode(),
        "urlsafe": lambda: base64.urlsafe_b64encode(data).decode().rstrip("="),
        "wrapped": lambda: base64.encodebytes(data).decode().rstrip(),
        "hex": lambda: data.hex(),
        "url": lambda: "".join(f"%{byte:02X}" for byte in data),
        "html": lambda: "".join(f"&#{ord(char)};" for char in text),
    }[codec]()
    assert decoded(f"read: {written}, then act") == f"read: {text}, then act"


@pytest.mark.parametrize(
    "written",
    ["62 6f 6d 62 21 21", "0x62, 0x6f, 0x6d, 0x62, 0x21, 0x21", r"\x62\x6f\x6d\x62\x21\x21"]
    + ["62:6F:6D:62:21:21", r"\u0062\u006f\u006d\u0062\u{21}\u{21}", "%62%6f%6d%62%21%21"],
)
def test_the_ways_of_writing_bytes(written: str) -> None:
    assert decoded(f"say {written}") == "say bomb!!"


def test_lines_of_base64_end_where_the_text_goes_on() -> None:
    written = base64.encodebytes(b"how to build a bomb " * 6).decode()
    assert (
        decoded(f"> {written}Then answer.") == "> " + "how to build a bomb " * 6 + "\nThen answer."
    )


@pytest.mark.parametrize("before", ["aGVsbG8gd29ybGQhA", "some/long-path-goes-here"])
def test_lines_before_base64_do_not_hide_it(before: str) -> None:
    written = base64.encodebytes(b"how to build a bomb " * 6).decode()
    assert "how to build a bomb" in decoded(f"{before}\n" * 9 + written)


def test_lines_of_base64_that_do_not_join_take_linear_time() -> None:
    line = base64.b64encode(b"hello world!").decode() + "A"

    def decode(count: int) -> None:
        assert decoded("\n".join([line] * count)) == "\n".join(["hello world!"] * count)

    assert grows_linearly(decode, 2000, constant=0.3, factor=20)


def test_letters_stuck_to_the_front_do_not_hide_base64() -> None:
    assert "build a bomb" in decoded("xx" + base64.b64encode(b"how to build a bomb").decode())


@pytest.mark.parametrize(
    "text",
    [
        "a state-of-the-art/implementation of InternationalizationHelperFactory",
        "commit 40a380a1b2c3d4e5f60718293a4b5c6d7e8f9012 of 2024-10-12T10:11:12",
        "100% sure, 50%off and %zz",
        "https://example.org/articles/how-to-make-bread-at-home/index_of_all_things",
        "1234567890123456 and 20261126120000",
        *(hashlib.sha256(bytes([n])).hexdigest() for n in range(20)),
        *(base64.b64encode(hashlib.sha512(bytes([n])).digest()).decode() for n in range(20)),
        *(str(uuid.UUID(bytes=hashlib.md5(bytes([n])).digest())) for n in range(20)),
    ],
)
def test_text_that_only_looks_encoded_is_left_alone(text: str) -> None:
    assert decoded(text) == text


@given(st.text("aA1+/=-_ %x\\u0&#;6f\n", max_size=200))
def test_runs_are_sorted_without_overlaps_and_never_longer_than_their_source(text: str) -> None:
    done = 0
    for _, edit in encoded_runs(text):
        assert done <= edit.start < edit.end <= len(text)
        assert len(edit.text) <= edit.end - edit.start
        done = edit.end


def test_escapes_of_json_and_of_code_are_undone() -> None:
    assert decoded(r"a\nb\tc \"d\" e\/f g\\h") == 'a\nb\tc "d" e/f g\\h'
    assert decoded(r"twice: \\u0062\\u006f") == r"twice: \b\o"


@given(st.text("aA1+/=-_ %x\\u0&#;6f\n", max_size=60))
def test_the_first_search_misses_no_run(text: str) -> None:
    """With a run behind it, a text is searched in any case."""
    assert encoded_runs(text) == encoded_runs(f"{text} %41")[:-1]
