"""Tenants in memory, as their database had them within the last second: what requests ask."""

from __future__ import annotations

import hmac
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from guard.config.schema import Config
from guard.errors import GuardFailed, TenantsUnavailable, Unauthorized
from guard.tenants.acts import Note
from guard.tenants.covering import at_least
from guard.tenants.inheritance import inherited, level_problems
from guard.tenants.keys import Principal
from guard.tenants.levels import Key, Level, Organisation, Team, kind_of, usage_id
from guard.tenants.meters import Ledger
from guard.tenants.secret import hash_key, id_in

if TYPE_CHECKING:
    from guard.tenants.identity_tokens import IdentityTokens
    from guard.tenants.store import TenantStore

logger = logging.getLogger(__name__)
Clock = Callable[[], float]
_NOBODY = hash_key("").encode()
_MOST_PRINCIPALS = 100_000


@dataclass(slots=True)
class _Snapshot:
    """The levels of one revision, and the principals that have been asked for since."""

    organisations: dict[str, Organisation] = field(default_factory=dict)
    teams: dict[str, Team] = field(default_factory=dict)
    keys: dict[str, Key] = field(default_factory=dict)
    principals: dict[str, Principal] = field(default_factory=dict)

    def changed(self, levels: list[Level]) -> _Snapshot:
        """The next one; that of requests that run stays as it is."""
        after = _Snapshot(dict(self.organisations), dict(self.teams), dict(self.keys))
        for level in levels:
            if isinstance(level, Organisation):
                after.organisations[level.id] = level
            elif isinstance(level, Team):
                after.teams[level.id] = level
            else:
                after.keys[level.id] = level
        return after

    def chain(self, level: Level) -> list[Level]:
        """A level and what is above it, the highest first."""
        if isinstance(level, Organisation):
            return [level]
        if isinstance(level, Team):
            return [self.organisations[level.organisation], level]
        # a key whose team is missing must be an error, not a key without a team's limits
        return [*(self.chain(self.teams[level.team]) if level.team is not None else ()), level]


class Directory:
    """The identities of a store. `open` starts the thread that keeps them fresh and writes down
    what was used; `find` and the ledger never wait for the database.

    `clock` returns monotonic seconds, `wall` seconds since the epoch.
    """

    def __init__(
        self,
        store: TenantStore,
        *,
        refresh_s: float = 0.5,
        offline_s: float = 60.0,
        tokens: IdentityTokens | None = None,
        ledger: Ledger | None = None,
        clock: Clock = time.monotonic,
        wall: Clock = time.time,
    ) -> None:
        self.store, self.ledger = store, ledger or Ledger()
        self._refresh_s, self._offline_s = refresh_s, offline_s
        self._tokens, self._clock, self._wall = tokens, clock, wall
        self._snapshot = _Snapshot()
        self._revision = self._usage_revision = 0
        self._read_at = clock()
        self._refreshing = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tenants", daemon=True)

    def open(self) -> None:
        """Read everything. Raises TenantsUnavailable."""
        self.refresh()
        if self._tokens is not None:
            self._tokens.open()
        self._thread.start()

    def close(self) -> None:
        """Write down what was used; what the database does not take is said in the log."""
        self._stop.set()
        self._thread.join()
        if self._tokens is not None:
            self._tokens.close()
        try:
            with self._refreshing:
                self._write_usage()
        except TenantsUnavailable as error:
            logger.error("usage since the last write is lost: %s", error)
        self.store.database.close()

    def find(self, secret: str) -> Principal | None:
        """Whose key or token it is; None if it is neither.

        Raises Unauthorized for one that was taken once, and TenantsUnavailable where the database
        has not answered for too long.
        """
        identity = id_in(secret)
        if identity is None:
            return self._of_token(secret)
        self._require_fresh()
        snapshot = self._snapshot
        key = snapshot.keys.get(identity)
        digest = hash_key(secret).encode()
        # an unknown id costs the same; both hashes are compared, whichever is right
        hashes = (key.hash, key.previous_hash) if key is not None else (None, None)
        is_current, is_previous = (
            hmac.compare_digest(each.encode() if each is not None else _NOBODY, digest)
            for each in hashes
        )
        if key is None or not (is_current or is_previous):
            return None
        self._require_valid(key, is_previous=not is_current)
        return self._principal(snapshot, key)

    def _of_token(self, secret: str) -> Principal | None:
        if self._tokens is None or (claims := self._tokens.read(secret)) is None:
            return None
        self._require_fresh()
        snapshot = self._snapshot
        if claims.role != "tenant":
            return Principal(tenant=f"token:{claims.subject}", role=claims.role)
        team = snapshot.teams.get(claims.team)
        if team is None:
            raise Unauthorized("The team of this token is unknown here.")
        return self._principal(snapshot, team)

    def _require_fresh(self) -> None:
        if self._clock() - self._read_at > self._offline_s:
            raise TenantsUnavailable(
                "Nobody can be identified now: the database of tenants does not answer."
            )

    def _require_valid(self, key: Key, *, is_previous: bool) -> None:
        now = self._wall()
        if key.revoked is not None:
            raise Unauthorized("This API key is revoked.")
        if key.expires is not None and now >= key.expires:
            raise Unauthorized("This API key has expired.")
        if is_previous and now >= (key.previous_until or 0.0):
            raise Unauthorized("This API key has been replaced by a new one.")

    def _principal(self, snapshot: _Snapshot, level: Key | Team) -> Principal:
        """The principal of a key, or of a team's tokens. Raises Unauthorized where a level above
        is revoked."""
        known = snapshot.principals.get(level.id)
        if known is not None:
            return known
        principal = self._made(snapshot, level)
        if len(snapshot.principals) < _MOST_PRINCIPALS:
            snapshot.principals[level.id] = principal
        return principal

    def _made(self, snapshot: _Snapshot, level: Key | Team) -> Principal:
        levels = snapshot.chain(level)
        team = next((each for each in levels if isinstance(each, Team)), None)
        if revoked := next((each for each in levels if each.revoked is not None), None):
            raise Unauthorized(f"The {kind_of(revoked)} of this key is revoked.")
        whole = inherited([each.settings for each in levels])
        return Principal(
            tenant=team.id if team is not None else f"key:{level.id}",
            role=level.role if isinstance(level, Key) else "tenant",
            default_policy=whole.default_policy,
            policies=whole.policies or (),
            required=whole.required,
            embeddings=whole.embeddings or False,
            verdict=whole.verdict,
            meters=tuple(
                self.ledger.meter(usage_id(kind_of(each), each.id), _title(each), each.settings)
                for each in reversed(levels)
            ),
        )

    def policy_problems(self, config: Config) -> Iterator[str]:
        """What would not hold for levels that are in force, under the policies of `config`."""
        snapshot = self._snapshot
        levels = (snapshot.organisations, snapshot.teams, snapshot.keys)
        for level in (level for of_kind in levels for level in of_kind.values()):
            *above, own = chain = snapshot.chain(level)
            if any(each.revoked is not None for each in chain):
                continue
            found = level_problems(
                own.settings, [each.settings for each in above], config.policy_names
            )
            title = f"the {kind_of(level)} {level.id!r}"
            yield from (f"{title}: {problem}" for problem in found)
            whole = inherited([each.settings for each in chain])
            try:
                at_least(
                    config, whole.default_policy or config.server.default_policy, whole.required
                )
            except GuardFailed as error:
                yield f"{title}: {error.message}"

    def follow(self, config: Config) -> Callable[[], None]:
        """See `server.policies.live.Follower`: levels may name the policies of `config`."""

        def swap() -> None:
            self.store.config = config

        return swap

    def refresh(self) -> None:
        """Write down what was used, and read what has changed. Raises TenantsUnavailable."""
        with self._refreshing:
            self._write_usage()
            revision, rows = self.store.usage(self._usage_revision)
            self._usage_revision = revision
            self.ledger.set_stored({(row.level, row.period): row.tokens for row in rows})
            changes = self.store.changes(self._revision)
            if changes.revision != self._revision:
                self._snapshot = self._snapshot.changed(list(changes.levels))
                self._revision = changes.revision
            self._read_at = self._clock()

    def _write_usage(self) -> None:
        pending = self.ledger.begin_writing()
        written = not pending
        try:
            if pending:
                self.store.add_usage(pending)
                written = True
        finally:
            self.ledger.end_writing(written=written)

    def _run(self) -> None:
        is_offline = False
        while not self._stop.wait(self._refresh_s):
            try:
                self.refresh()
            except TenantsUnavailable as error:
                if not is_offline:
                    logger.error("%s; what was read from it holds on", error)
                is_offline = True
            except Exception:
                logger.exception("tenants could not be read again")
            else:
                if is_offline:
                    logger.error("the database of tenants answers again")
                is_offline = False


def _title(level: Level) -> str:
    return "this key" if isinstance(level, Key) else f"the {kind_of(level)} {level.id!r}"


@contextmanager
def open_directory(
    config: Config, note: Note | None = None, ledger: Ledger | None = None
) -> Iterator[Directory | None]:
    """The tenants of a configuration while its server runs; None where it has no database. `note`
    is told of changes that are made here; `ledger` counts their requests.

    Raises GuardError where the database cannot be used.
    """
    if not config.tenants.is_configured:
        yield None
        return
    store = store_of(config, note)
    tokens = None
    if config.oidc.issuer is not None:
        from guard.tenants.identity_tokens import IdentityTokens

        tokens = IdentityTokens(config.oidc)
    directory = Directory(
        store,
        refresh_s=config.tenants.refresh_s,
        offline_s=config.tenants.offline_s,
        tokens=tokens,
        ledger=ledger,
    )
    directory.open()
    try:
        yield directory
    finally:
        directory.close()


def store_of(config: Config, note: Note | None = None) -> TenantStore:
    """The store that a configuration names. Raises GuardError."""
    # imported here: a server without a database needs neither
    from guard.tenants.database import Database, url_in
    from guard.tenants.store import TenantStore

    url = url_in(config.tenants)
    assert url is not None
    return TenantStore(Database(url), config, note=note)
