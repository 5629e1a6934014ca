"""Names and documents as users hand them over."""

from __future__ import annotations

from pathlib import Path

import pytest

from guard.errors import DataError
from guard.fitting.erasure import documents
from guard.fitting.erasure.documents import checked_name, read_documents


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
