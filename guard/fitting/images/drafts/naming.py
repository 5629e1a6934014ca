"""What a user says of a concept: its name, other names, a file of phrases or a concept file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from guard.data.concept import Concept, Phrase, read_concept
from guard.errors import DataError
from guard.fitting.erasure.documents import checked_name, read_documents
from guard.fitting.steering.artifacts import file_name

MOST_PHRASES = 200
_PHRASES = TypeAdapter(list[Phrase])


@dataclass(frozen=True)
class Named:
    """A concept as it was named: `kind` is empty where none was given.

    `phrases` ask for it, `started` is the concept file that a draft starts from.
    """

    kind: str
    name: str
    phrases: tuple[str, ...] = ()
    started: Concept | None = None

    @property
    def slug(self) -> str:
        """The name as a part of files' names."""
        return file_name(self.name)


def named(concept: str, aliases: Sequence[str], about: Sequence[Path]) -> Named:
    """Read `NAME` or `KIND/NAME`, and the files. Raises DataError for what cannot be used."""
    kind, _, name = checked_name(concept).rpartition("/")
    kind = file_name(kind) if kind.strip() else ""
    name = checked_name(name.replace("-", " ") if kind else name)
    started = None
    phrases = [checked_name(alias) for alias in aliases]
    for path in about:
        if path.suffix == ".json":
            if started is not None:
                raise DataError(f"{path}: is the second concept file: give one")
            started = read_concept(path)
        else:
            phrases += _listed(path)
    if kind == "style" or (started is not None and started.ending):
        raise DataError(
            "a style has no words of its own in WordNet and no place in an image: write a concept "
            'file with "ending": true (docs/images.md) and use `guard fit cgce`'
        )
    return Named(kind, name, tuple(dict.fromkeys(phrases)), started)


def _listed(path: Path) -> list[str]:
    """The lines of a file of phrases."""
    (text,) = read_documents([path])
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if len(lines) > MOST_PHRASES:
        raise DataError(
            f"{path}: has {len(lines)} lines, at most {MOST_PHRASES} are taken: for a model of "
            "images it is a list of phrases, one a line"
        )
    try:
        return _PHRASES.validate_python(lines)
    except ValidationError as error:
        number = int(error.errors()[0]["loc"][0]) + 1
        raise DataError(
            f"{path}: phrase {number} has more than 300 characters: for a model of images it is a "
            "list of phrases, one a line"
        ) from error
