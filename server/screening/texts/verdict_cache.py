"""Scores of texts that were read before, bounded: by the text itself, and by what is read of it.

Two texts that an encoder reads alike (other case, other spaces, a disguise undone) have one entry.
Nothing coarser is safe: whoever has a harmless text scored could pass a harmful one that is near.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Generic, TypeVar

V = TypeVar("V")
_SPACES = re.compile("[ \t\n\r]+")


class VerdictCache(Generic[V]):
    """`entries` values at most; the one that was asked for least recently goes first.

    Keys are hashes: no text is kept. May be asked from any thread.
    """

    def __init__(self, entries: int) -> None:
        self.entries = entries
        self._values: OrderedDict[bytes, V] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: bytes) -> V | None:
        """What is known under a key."""
        with self._lock:
            value = self._values.get(key)
            if value is not None:
                self._values.move_to_end(key)
            return value

    def put(self, key: bytes, value: V) -> None:
        """Remember it."""
        with self._lock:
            self._values[key] = value
            self._values.move_to_end(key)
            if len(self._values) > self.entries:
                self._values.popitem(last=False)

    def __len__(self) -> int:
        return len(self._values)


def exact_key(text: str) -> bytes:
    """The key of a text as it stands."""
    return hashlib.blake2b(b"t" + text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def read_key(readings: Sequence[str]) -> bytes:
    """The key of what an uncased encoder is shown of a text."""
    digest = hashlib.blake2b(b"r", digest_size=16)
    for reading in readings:
        # nothing more than an uncased tokenizer makes alike: others of Python's spaces it drops
        shown = _SPACES.sub(" ", reading.lower()).encode("utf-8", "surrogatepass")
        digest.update(len(shown).to_bytes(8, "little") + shown)
    return digest.digest()
