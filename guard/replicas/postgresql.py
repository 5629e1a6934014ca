"""The store in PostgreSQL: one transaction for each exchange, by the database's own clock."""

from __future__ import annotations

import math
import threading
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict

from guard.replicas.store import (
    BREAKER_LIFE_S,
    REPLICA_LIFE_S,
    SLOTS_LIFE_S,
    BreakerReport,
    BreakerState,
    Claim,
    Standing,
    StoreUnavailable,
)

# unlogged: what a crash of the database forgets is a minute's count
_TABLES = """
SELECT pg_advisory_xact_lock(71936);
CREATE UNLOGGED TABLE IF NOT EXISTS replicas (
  service text, replica text, expires double precision NOT NULL, PRIMARY KEY (service, replica));
CREATE UNLOGGED TABLE IF NOT EXISTS replica_limits (
  service text, name text, requests double precision, tokens double precision,
  at double precision NOT NULL, expires double precision NOT NULL, PRIMARY KEY (service, name));
CREATE UNLOGGED TABLE IF NOT EXISTS replica_slots (
  service text, name text, replica text, held integer NOT NULL,
  expires double precision NOT NULL, PRIMARY KEY (service, name, replica));
CREATE UNLOGGED TABLE IF NOT EXISTS replica_breakers (
  service text, upstream text, failures integer NOT NULL, open_until double precision,
  expires double precision NOT NULL, PRIMARY KEY (service, upstream));
"""
_NOW = "SELECT extract(epoch FROM clock_timestamp())::double precision"
_SWEEP_EVERY_S = 60.0
_EXPIRING = ("replicas", "replica_limits", "replica_slots", "replica_breakers")


class PostgresStore:
    """The store at a `postgresql://` URL, for servers that call themselves `name`."""

    def __init__(self, url: str, name: str, timeout_s: float) -> None:
        """Raises ValueError where the URL is none."""
        _check(url)
        self.replica = uuid.uuid4().hex
        self._url, self._name, self._timeout_s = url, name, timeout_s
        self._connection: psycopg.Connection[Any] | None = None
        self._swept_at = 0.0
        self._lock = threading.Lock()

    def exchange(self, claims: Sequence[Claim]) -> list[Standing]:
        # in one order, so that replicas which lock the same rows never wait for each other in turn
        ordered = sorted(claims, key=lambda claim: claim.name)
        with self._transaction() as cursor:
            cursor.execute(
                "INSERT INTO replicas VALUES (%s, %s, 0) ON CONFLICT DO NOTHING",
                (self._name, self.replica),
            )
            buckets = self._locked_buckets(cursor, ordered)
            # behind the locks: what others wrote is in the past
            now = _scalar(cursor, _NOW)
            cursor.execute(
                "UPDATE replicas SET expires = %s WHERE service = %s AND replica = %s",
                (now + REPLICA_LIFE_S, self._name, self.replica),
            )
            alive = _scalar(
                cursor,
                "SELECT count(*) FROM replicas WHERE service = %s AND expires > %s",
                (self._name, now),
            )
            others = self._slots_of_others(cursor, ordered, now)
            standings = {
                claim.name: self._settled(
                    claim, buckets[claim.name], others.get(claim.name, 0), now, alive
                )
                for claim in ordered
            }
            self._write(cursor, ordered, standings, now)
            self._sweep(cursor, now)
        return [standings[claim.name] for claim in claims]

    def _locked_buckets(
        self, cursor: psycopg.Cursor[Any], claims: Sequence[Claim]
    ) -> dict[str, tuple[float | None, float | None, float | None]]:
        """Requests, tokens and their moment, by name; None where there is nothing yet."""
        names = [claim.name for claim in claims]
        if not names:
            return {}
        cursor.execute(
            "INSERT INTO replica_limits (service, name, at, expires) "
            "SELECT %s, unnest(%s::text[]), 0, 0 ON CONFLICT DO NOTHING",
            (self._name, names),
        )
        cursor.execute(
            "SELECT name, requests, tokens, at, expires FROM replica_limits "
            "WHERE service = %s AND name = ANY(%s) ORDER BY name FOR UPDATE",
            (self._name, names),
        )
        return {
            name: (requests, tokens, at if expires else None)
            for name, requests, tokens, at, expires in cursor.fetchall()
        }

    def _slots_of_others(
        self, cursor: psycopg.Cursor[Any], claims: Sequence[Claim], now: float
    ) -> dict[str, int]:
        names = [claim.name for claim in claims if claim.concurrent is not None]
        if not names:
            return {}
        cursor.execute(
            "SELECT s.name, sum(s.held) FROM replica_slots s "
            "JOIN replicas r ON r.service = s.service AND r.replica = s.replica "
            "WHERE s.service = %s AND s.name = ANY(%s) AND s.replica <> %s AND r.expires > %s "
            "AND s.expires > %s GROUP BY s.name",
            (self._name, names, self.replica, now, now),
        )
        return {name: int(held) for name, held in cursor.fetchall()}

    def _settled(
        self,
        claim: Claim,
        bucket: tuple[float | None, float | None, float | None],
        others: int,
        now: float,
        alive: int,
    ) -> Standing:
        """See `ReplicaStore.exchange`."""
        had_requests, had_tokens, at = bucket
        passed = max(0.0, now - at) if at is not None else 0.0
        left = tokens = 0.0
        granted = slots = free = 0
        if (rate := claim.requests_per_minute) is not None:
            had = rate if had_requests is None else had_requests
            left = min(rate, had + passed * rate / 60 + claim.returned)
            room = math.floor(left + 1e-9)
            share = room // (2 * alive)
            granted = max(0, min(room, max(claim.needed, min(claim.wanted, share))))
            left -= granted
        if (rate := claim.tokens_per_minute) is not None:
            had = rate if had_tokens is None else had_tokens
            tokens = min(rate, had + passed * rate / 60) - claim.tokens_spent
        if claim.concurrent is not None:
            room = max(0, claim.concurrent - others)
            spare = max(0, room - claim.slots_needed) // (2 * alive)
            needed = claim.slots_needed
            slots = min(room, max(needed, min(claim.slots_wanted, needed + spare)))
            free = room - slots
        return Standing(left, granted, tokens, slots, free)

    def _write(
        self,
        cursor: psycopg.Cursor[Any],
        claims: Sequence[Claim],
        standings: dict[str, Standing],
        now: float,
    ) -> None:
        if not claims:
            return
        rows = [(claim, standings[claim.name]) for claim in claims]
        cursor.execute(
            "UPDATE replica_limits l SET requests = n.requests, tokens = n.tokens, at = %s, "
            "expires = n.expires FROM unnest(%s::text[], %s::double precision[], "
            "%s::double precision[], %s::double precision[]) AS n(name, requests, tokens, expires) "
            "WHERE l.service = %s AND l.name = n.name",
            (
                now,
                [claim.name for claim, _ in rows],
                # a limit that is new later begins whole
                [s.requests_left if c.requests_per_minute is not None else None for c, s in rows],
                [s.tokens_left if c.tokens_per_minute is not None else None for c, s in rows],
                [now + 60 + _until_full_s(claim, standing) for claim, standing in rows],
                self._name,
            ),
        )
        held = [(claim.name, standing.slots) for claim, standing in rows if claim.concurrent]
        if held:
            cursor.execute(
                "INSERT INTO replica_slots SELECT %s, n.name, %s, n.held, %s "
                "FROM unnest(%s::text[], %s::integer[]) AS n(name, held) "
                "ON CONFLICT (service, name, replica) "
                "DO UPDATE SET held = excluded.held, expires = excluded.expires",
                (
                    self._name,
                    self.replica,
                    now + SLOTS_LIFE_S,
                    [name for name, _ in held],
                    [count for _, count in held],
                ),
            )

    def breakers(self, reports: Sequence[BreakerReport]) -> list[BreakerState]:
        states = {}
        with self._transaction() as cursor:
            for report in sorted(reports, key=lambda report: report.upstream):
                states[report.upstream] = self._breaker(cursor, report)
        return [states[report.upstream] for report in reports]

    def _breaker(self, cursor: psycopg.Cursor[Any], report: BreakerReport) -> BreakerState:
        key = (self._name, report.upstream)
        has_news = report.answered or report.succeeded or report.failures or report.opened
        lock = ""
        if has_news:
            lock = " FOR UPDATE"
            cursor.execute(
                "INSERT INTO replica_breakers VALUES (%s, %s, 0, NULL, 0) ON CONFLICT DO NOTHING",
                key,
            )
        cursor.execute(
            "SELECT failures, open_until FROM replica_breakers "
            f"WHERE service = %s AND upstream = %s{lock}",
            key,
        )
        failures, open_until = cursor.fetchone() or (0, None)
        now = _scalar(cursor, _NOW)
        if report.answered:
            open_until = None
        if report.succeeded:
            failures, open_until = 0, None
        failures += report.failures
        if report.opened or (report.failures and failures >= report.threshold):
            open_until = now + report.cooldown_s
        if has_news:
            cursor.execute(
                "UPDATE replica_breakers SET failures = %s, open_until = %s, expires = %s "
                "WHERE service = %s AND upstream = %s",
                (failures, open_until, now + BREAKER_LIFE_S + report.cooldown_s, *key),
            )
        wait_s = max(0.0, open_until - now) if open_until is not None else 0.0
        return BreakerState(failures, open_until is not None, wait_s)

    def close(self) -> None:
        with suppress(StoreUnavailable), self._transaction() as cursor:
            cursor.execute(
                "DELETE FROM replicas WHERE service = %s AND replica = %s",
                (self._name, self.replica),
            )
        self._drop()

    def _sweep(self, cursor: psycopg.Cursor[Any], now: float) -> None:
        """Delete what has expired; rows that another replica has locked wait."""
        if now - self._swept_at < _SWEEP_EVERY_S:
            return
        self._swept_at = now
        for table in _EXPIRING:
            cursor.execute(
                f"DELETE FROM {table} WHERE ctid = ANY(ARRAY(SELECT ctid FROM {table} "
                "WHERE expires < %s FOR UPDATE SKIP LOCKED))",
                (now - REPLICA_LIFE_S,),
            )

    @contextmanager
    def _transaction(self) -> Iterator[psycopg.Cursor[Any]]:
        """A transaction, undone where its block raises. Raises StoreUnavailable."""
        with self._lock:
            try:
                if self._connection is None:
                    self._connection = self._connected()
                with self._connection.transaction(), self._connection.cursor() as cursor:
                    yield cursor
            except psycopg.Error as error:
                self._drop()
                reason = str(error).splitlines()[0] if str(error) else type(error).__name__
                raise StoreUnavailable(f"PostgreSQL does not answer: {reason}") from error

    def _connected(self) -> psycopg.Connection[Any]:
        milliseconds = round(1000 * self._timeout_s)
        connection = psycopg.connect(
            self._url,
            # libpq knows whole seconds, two at least
            connect_timeout=max(2, math.ceil(self._timeout_s)),
            tcp_user_timeout=milliseconds,
            # a machine that is gone while it owes an answer: the system would wait for hours
            keepalives_idle=1,
            keepalives_interval=1,
            keepalives_count=3,
            options=f"-c statement_timeout={milliseconds}",
        )
        # whatever the database's default is: behind a lock the newest rows are read
        connection.isolation_level = psycopg.IsolationLevel.READ_COMMITTED
        try:
            with connection.transaction():
                connection.execute(_TABLES)
        except BaseException:
            connection.close()
            raise
        return connection

    def _drop(self) -> None:
        if self._connection is not None:
            with suppress(psycopg.Error):
                self._connection.close()
        self._connection = None


def _check(url: str) -> None:
    """Raises ValueError where the client's errors would tell a part of the password: one with a
    character that is not escaped is taken for the host or the port."""
    try:
        parts = conninfo_to_dict(url)
    except psycopg.Error:
        raise ValueError("no valid URL") from None
    hosts, ports = str(parts.get("host", "")), str(parts.get("port", ""))
    if "@" in hosts or not all(port.isdecimal() for port in ports.split(",") if port):
        raise ValueError("no valid URL")


def _scalar(cursor: psycopg.Cursor[Any], query: str, values: Sequence[Any] = ()) -> Any:
    row = cursor.execute(query, values or None).fetchone()
    assert row is not None
    return row[0]


def _until_full_s(claim: Claim, standing: Standing) -> float:
    seconds = [0.0]
    if claim.requests_per_minute is not None:
        rate = claim.requests_per_minute
        seconds.append((rate - standing.requests_left) * 60 / rate)
    if claim.tokens_per_minute is not None:
        rate = claim.tokens_per_minute
        seconds.append((rate - standing.tokens_left) * 60 / rate)
    return min(max(seconds), 86_400.0)
