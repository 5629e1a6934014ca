"""The store that a configuration names, and the ledger that counts in it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec

from guard.config.replicas_checks import STORES
from guard.config.replicas_schema import ReplicasConfig
from guard.errors import GuardError
from guard.replicas.limits import SharedLedger
from guard.replicas.store import ReplicaStore


@dataclass(frozen=True, slots=True)
class Replicas:
    """What a server shares with others while it runs."""

    store: ReplicaStore
    ledger: SharedLedger
    settings: ReplicasConfig


def ledger_of(replicas: Replicas | None) -> SharedLedger | None:
    """What counts a server's requests; None where it counts alone."""
    return replicas.ledger if replicas is not None else None


@contextmanager
def open_replicas(settings: ReplicasConfig) -> Iterator[Replicas | None]:
    """What `[replicas]` shares; None where it names no store.

    Raises GuardError where the store cannot be used, and where it does not answer and requests
    would be refused.
    """
    if not settings.is_configured:
        yield None
        return
    store = store_of(settings)
    ledger = SharedLedger(store, settings)
    try:
        if not ledger.exchange() and settings.unavailable == "refuse":
            raise GuardError(
                "the store of [replicas] does not answer: start it, correct its URL, or let each "
                'replica count alone with unavailable = "local"'
            )
        ledger.open()
        try:
            yield Replicas(store, ledger, settings)
        finally:
            ledger.close()
    finally:
        store.close()


def store_of(settings: ReplicasConfig) -> ReplicaStore:
    """The store that the settings name. Raises GuardError."""
    url = _url_in(settings)
    is_redis = url.startswith("redis")
    module = "redis" if is_redis else "psycopg"
    if find_spec(module) is None:
        raise GuardError(f"[replicas] needs {module}: pip install 'inference-guard[replicas]'")
    try:
        if is_redis:
            # imported here: each has a client of its own
            from guard.replicas.redis import RedisStore

            return RedisStore(url, settings.name, settings.timeout_s)
        from guard.replicas.postgresql import PostgresStore

        return PostgresStore(url, settings.name, settings.timeout_s)
    except ValueError:
        # the message may have the URL, and that a password
        raise GuardError("the store of [replicas] has no valid URL: correct it") from None


def _url_in(settings: ReplicasConfig) -> str:
    url = settings.store
    if settings.store_env is not None:
        url = os.environ.get(settings.store_env)
        if not url:
            raise GuardError(
                f"the environment variable {settings.store_env} is empty: put the URL of the store "
                "into it, or set 'store' in [replicas]"
            )
    if url is None or url.partition("://")[0] not in STORES:
        raise GuardError("the store of [replicas] is a redis://, rediss:// or postgresql:// URL")
    return url
