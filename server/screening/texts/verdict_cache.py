"""A bounded cache of scores, keyed by a text as it stands or by what an encoder reads of it.

Two texts that an encoder reads alike (other case, other spaces, a disguise undone) share an entry.
Nothing coarser is safe: a client that has a harmless text scored could pass a harmful one that is
near it.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Generic, TypeVar

V = TypeVar("V")
_SALT = secrets.token_bytes(16)
"""Nobody who knows a text knows its key."""
_SPACES = re.compile("[ \t\n\r]+")


class VerdictCache(Generic[V]):
    """Keeps at most `entries` values, for each tenant no more than its share where others need it.

    No tenant is given what another has put in: the time of an answer would tell what others ask.
    Least recently used values go first, those of the tenant that has most where the one that puts
    has less than its share. Keys are hashes: no text is kept. Safe to call from any thread.
    """

    def __init__(self, entries: int) -> None:
        self.entries = entries
        self._tenants: dict[str, OrderedDict[bytes, V]] = {}
        self._size = 0
        self._lock = threading.Lock()

    def get(self, tenant: str, key: bytes) -> V | None:
        """The value of a tenant's key, or None."""
        with self._lock:
            values = self._tenants.get(tenant)
            value = None if values is None else values.get(key)
            if values is not None and value is not None:
                values.move_to_end(key)
            return value

    def put(self, tenant: str, key: bytes, value: V) -> None:
        """Store a value."""
        with self._lock:
            values = self._tenants.setdefault(tenant, OrderedDict())
            self._size += key not in values
            values[key] = value
            values.move_to_end(key)
            if self._size > self.entries:
                if len(values) * len(self._tenants) <= self.entries:
                    tenant = max(self._tenants, key=lambda name: len(self._tenants[name]))
                self._drop_oldest(tenant)

    def __len__(self) -> int:
        return self._size

    def _drop_oldest(self, tenant: str) -> None:
        values = self._tenants[tenant]
        values.popitem(last=False)
        self._size -= 1
        if not values:
            del self._tenants[tenant]


def exact_key(text: str) -> bytes:
    """The key of a text as it stands."""
    encoded = b"t" + text.encode("utf-8", "surrogatepass")
    return hashlib.blake2b(encoded, digest_size=16, key=_SALT).digest()


def file_key(file: bytes) -> bytes:
    """The key of a file."""
    return hashlib.blake2b(b"f" + file, digest_size=16, key=_SALT).digest()


def read_key(readings: Sequence[str]) -> bytes:
    """The key of the readings of a text that an uncased encoder gets."""
    digest = hashlib.blake2b(b"r", digest_size=16, key=_SALT)
    for reading in readings:
        # only the spaces that an uncased tokenizer makes equal: it drops the others of Python's
        normalized = _SPACES.sub(" ", reading.lower()).encode("utf-8", "surrogatepass")
        digest.update(len(normalized).to_bytes(8, "little") + normalized)
    return digest.digest()
