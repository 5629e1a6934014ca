"""A bounded cache of scores, keyed by a text as it stands or by what an encoder reads of it.

Two texts that an encoder reads alike (other case, other spaces, a disguise undone) share an entry.
Nothing coarser is safe: a client that has a harmless text scored could pass a harmful one that is
near it.
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
    """Keeps at most `entries` values, and drops the least recently used one first.

    Keys are hashes: no text is kept. Safe to call from any thread.
    """

    def __init__(self, entries: int) -> None:
        self.entries = entries
        self._values: OrderedDict[bytes, V] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: bytes) -> V | None:
        """The value of a key, or None."""
        with self._lock:
            value = self._values.get(key)
            if value is not None:
                self._values.move_to_end(key)
            return value

    def put(self, key: bytes, value: V) -> None:
        """Store a value."""
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
    """The key of the readings of a text that an uncased encoder gets."""
    digest = hashlib.blake2b(b"r", digest_size=16)
    for reading in readings:
        # only the spaces that an uncased tokenizer makes equal: it drops the others of Python's
        normalized = _SPACES.sub(" ", reading.lower()).encode("utf-8", "surrogatepass")
        digest.update(len(normalized).to_bytes(8, "little") + normalized)
    return digest.digest()
