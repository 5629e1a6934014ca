"""Names and documents as users hand them over."""

from __future__ import annotations

from pathlib import Path

import pytest

from guard.errors import DataError
from guard.fitting.erasure import documents
from guard.fitting.erasure.documents import (
    MAX_FACTS,
    MAX_NAME,
    checked_name,
    read_documents,
    read_facts,
)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("  ", "has no name"),
        ("x" * 101, "has 101 characters"),
        ("two\nlines", "line breaks"),
        ("\x1b[31mred", "control characters"),
        (".*", "has no letters"),
    ],
)
def test_a_name_that_prompts_cannot_speak_of_is_refused(name: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        checked_name(name)


def test_a_name_may_look_like_a_regular_expression() -> None:
    assert checked_name("  C++ (a|b)* ") == "C++ (a|b)*"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b" \n ", "is empty"),
        (b"\xff\xfe\x00", "is not UTF-8 text"),
        (b"%PDF\x00\x01", "holds binary data"),
        (b"long " * 9, "is larger than"),
    ],
)
def test_a_document_that_is_no_text_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, message: str
) -> None:
    monkeypatch.setattr(documents, "MAX_BYTES", 40)
    path = tmp_path / "document"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as told:
        read_documents([path])
    assert str(path) in str(told.value)


def test_a_document_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read: No such file"):
        read_documents([tmp_path / "nowhere.txt"])


def test_documents_come_as_their_texts(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("\ufeffGrüße".encode())
    assert read_documents([tmp_path / "a.txt"]) == ["Grüße"]


def test_facts_are_lines_bounded_in_number_and_length(tmp_path: Path) -> None:
    path = tmp_path / "facts.txt"
    path.write_text("one\n\n two \none\n")
    assert read_facts(path) == ("one", "two") and read_facts(None) == ()
    path.write_text("x" * (MAX_NAME + 1))
    with pytest.raises(DataError, match="one fact a line"):
        read_facts(path)
    path.write_text("\n".join(map(str, range(MAX_FACTS + 1))))
    with pytest.raises(DataError, match=f"at most {MAX_FACTS}"):
        read_facts(path)
