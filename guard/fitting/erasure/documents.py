"""Documents about a concept, as a user hands them over: files of text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from guard.errors import DataError

MAX_BYTES = 8 * 2**20
MAX_NAME = 100
MAX_FACTS = 500


def read_documents(paths: Sequence[Path]) -> list[str]:
    """The texts of files. Raises DataError naming one that is empty, too large or no text."""
    found = []
    for path in paths:
        try:
            if path.stat().st_size > MAX_BYTES:
                raise DataError(
                    f"{path}: is larger than {MAX_BYTES // 2**20} MiB: give parts of it"
                )
            text = path.read_text("utf-8-sig")
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise DataError(
                f"{path}: is not UTF-8 text (byte {error.start}): give the text of it"
            ) from error
        try:
            found.append(checked_text(text))
        except DataError as error:
            raise DataError(f"{path}: {error.message}") from None
    return found


def checked_text(text: str) -> str:
    """A document that is text. Raises DataError."""
    if "\0" in text:
        raise DataError("holds binary data: give the text of it")
    if not text.strip():
        raise DataError("is empty: leave it out")
    return text


def read_facts(path: Path | None) -> tuple[str, ...]:
    """The lines of a file, each a text that an answer leaks by; none without a file. Raises
    DataError as `read_documents`, for too many and for long ones."""
    if path is None:
        return ()
    (text,) = read_documents([path])
    facts = tuple(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip()))
    if len(facts) > MAX_FACTS:
        raise DataError(f"{path}: has {len(facts)} facts, at most {MAX_FACTS} are taken")
    if long := next((fact for fact in facts if len(fact) > MAX_NAME), ""):
        raise DataError(
            f"{path}: a fact of {len(long)} characters, {long[:30]!r}...: give the few words by "
            "which an answer leaks it, one fact a line"
        )
    return facts


def checked_name(name: str) -> str:
    """A name of a concept, without spaces around it. Raises DataError."""
    name = name.strip()
    if not name:
        raise DataError("the concept has no name: give one")
    if len(name) > MAX_NAME:
        raise DataError(
            f"the name of the concept has {len(name)} characters, at most {MAX_NAME} are taken: "
            "give a short name, and what else there is to say in a file with --about"
        )
    if not name.isprintable():
        raise DataError(
            "the name of the concept holds line breaks or control characters: leave them out"
        )
    if not any(character.isalpha() for character in name):
        raise DataError(f"the name {name!r} has no letters: prompts could not speak of it")
    return name
