"""API keys: their settings and rate limits."""

from __future__ import annotations

import hashlib
import hmac
import threading
import time
from collections.abc import Callable, Sequence

from guard.config.schema import KeyConfig
from guard.errors import TooManyRequests

Clock = Callable[[], float]


def hash_key(key: str) -> str:
    """The hash of an API key, as in the configuration: `sha256:` and 64 hex digits."""
    return "sha256:" + hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


class KeyRing:
    """The keys of a configuration with their rate limits; thread-safe.

    `clock` returns monotonic seconds.
    """

    def __init__(self, keys: Sequence[KeyConfig], clock: Clock = time.monotonic) -> None:
        self._keys = tuple(keys)
        self._lock = threading.Lock()
        self._buckets = {
            key.hash: _Bucket(key.requests_per_minute, clock)
            for key in keys
            if key.requests_per_minute is not None
        }

    def find(self, key: str) -> KeyConfig | None:
        """The settings of an API key; None if it is unknown.

        Every hash is compared, each in constant time, so that timing reveals nothing.
        """
        digest = hash_key(key).encode()
        match = None
        for known in self._keys:
            if hmac.compare_digest(known.hash.encode(), digest):
                match = known
        return match

    def take(self, key: KeyConfig) -> None:
        """Count one request of `key`. Raises TooManyRequests over its rate."""
        bucket = self._buckets.get(key.hash)
        if bucket is None:
            return
        with self._lock:
            wait_s = bucket.take()
        if wait_s > 0:
            raise TooManyRequests(
                f"this key may send {bucket.per_minute} requests a minute: "
                f"try again in {wait_s:.1f} s",
                retry_after=wait_s,
            )


class _Bucket:
    """A token bucket that holds a minute's requests and fills evenly."""

    def __init__(self, per_minute: int, clock: Clock) -> None:
        self.per_minute = per_minute
        self._clock = clock
        self._tokens = float(per_minute)
        self._filled_at = clock()

    def take(self) -> float:
        """Take one token and return 0, or return the seconds until the next token."""
        now = self._clock()
        per_second = self.per_minute / 60
        self._tokens += (now - self._filled_at) * per_second
        self._tokens = min(self._tokens, float(self.per_minute))
        self._filled_at = now
        if self._tokens < 1 - 1e-9:  # the returned wait must suffice in spite of rounding
            return (1 - self._tokens) / per_second
        self._tokens -= 1
        return 0.0
