"""What would go wrong with a part of the keys of the cache of prefixes left out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock


@contextmanager
def without_salt() -> Iterator[None]:
    """The salt of a request's plan is left out: prefixes are shared by requests with and without
    guards."""
    with mock.patch("server.vllm.front.salted", lambda salt, _plan: salt):
        yield


@contextmanager
def without_image() -> Iterator[None]:
    """The hashes of images are left out: prefixes are shared by requests with other images."""
    keys = "vllm.v1.core.kv_cache_utils._gen_mm_extra_hash_keys"
    with mock.patch(keys, lambda _request, _start, _end, index: ([], index)):
        yield
