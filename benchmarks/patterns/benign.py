"""Benign texts: what is installed with Python, cut into pieces.

Addresses of authors and the like are real. They are known by a digest (`reviewed.txt`), which was
written after each had been read; everything else that is found there counts as false.
"""

from __future__ import annotations

import hashlib
import random
import sysconfig
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple

_PIECE: Final = 4000
_REVIEWED: Final = Path(__file__).with_name("reviewed.txt")
_MOST_BYTES: Final = 40_000
_NAMES: Final[Mapping[str, tuple[str, ...]]] = {
    "Python sources": ("*.py",),
    "documentation": ("METADATA", "*.md", "*.rst"),
    "changelogs": ("CHANGE*", "HISTORY*", "NEWS*", "RELEASE*"),
    "JSON and schemas": ("*.json",),
    "stubs and templates": ("*.pyi", "*.html", "*.jinja"),
    "logs": ("*.log",),
}


class Piece(NamedTuple):
    corpus: str
    text: str


def pieces(size: int, seed: int) -> list[Piece]:
    """Pieces of each corpus, about `size` characters of each where there are so many."""
    found = []
    for corpus, names in _NAMES.items():
        room = size
        paths = sorted(_paths(corpus, names))
        random.Random(seed).shuffle(paths)
        for path in paths:
            if room <= 0:
                break
            try:
                text = path.read_text(encoding="utf-8")[: min(_MOST_BYTES, room)]
            except (OSError, UnicodeDecodeError):
                continue
            room -= len(text)
            found += [Piece(corpus, text[at : at + _PIECE]) for at in range(0, len(text), _PIECE)]
    return found


def _paths(corpus: str, names: tuple[str, ...]) -> Iterator[Path]:
    roots = [Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib")]
    for root in [Path("/var/log")] if corpus == "logs" else [*roots, Path("/usr/share/doc")]:
        for name in names:
            # tests of such software hold made-up keys and people
            skipped = ("faker", "test", "stdnum", "presidio", "detect_secrets", "phonenumbers")
            for path in root.rglob(name):
                is_read = not any(word in str(path).lower() for word in skipped)
                if is_read and path.is_file() and path.suffix not in (".gz", ".so"):
                    yield path


def digest(value: str) -> str:
    """What a reviewed finding is known by."""
    return hashlib.sha256(value.encode()).hexdigest()[:16]


def reviewed() -> frozenset[str]:
    """The digests of findings in benign texts that are real."""
    return frozenset(_REVIEWED.read_text().split()) if _REVIEWED.exists() else frozenset()
