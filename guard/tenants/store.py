"""Organisations, teams and keys in a database: the one place where they are made and changed."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from pydantic import ValidationError
from sqlalchemy.engine import Connection
from sqlalchemy.exc import IntegrityError

from guard.config.schema import Config
from guard.errors import AlreadyExists, InvalidTenant, UnknownTenant
from guard.tenants import database as tables
from guard.tenants.acts import Act, Note
from guard.tenants.database import Database
from guard.tenants.inheritance import level_problems
from guard.tenants.levels import (
    LONGEST_LIFE_S,
    LONGEST_OVERLAP_S,
    TENANT_NAME,
    Key,
    Kind,
    Level,
    LevelSettings,
    Organisation,
    Role,
    Team,
)
from guard.tenants.meters import Pending
from guard.tenants.secret import hash_key, new_key

Wall = Callable[[], float]
MOST_OF_PAGE = 1000
_TABLES: Mapping[Kind, sa.Table] = {
    "organisation": tables.organisations,
    "team": tables.teams,
    "key": tables.keys,
}
_IDS: Mapping[Kind, sa.Column[str]] = {
    "organisation": tables.organisations.c.name,
    "team": tables.teams.c.id,
    "key": tables.keys.c.id,
}
_PARENTS: Mapping[Kind, sa.Column[str]] = {
    "team": tables.teams.c.organisation,
    "key": tables.keys.c.team,
}


@dataclass(frozen=True, slots=True)
class Changes:
    """Levels that have changed up to a revision."""

    revision: int
    levels: Sequence[Level]


@dataclass(frozen=True, slots=True)
class UsageRow:
    """What a level has used in a month, by all servers."""

    level: str
    period: str
    requests: int
    tokens: int


class TenantStore:
    """Makes and changes levels in one transaction each; thread-safe. `now` gives seconds since the
    epoch.

    Policies are checked against `config`, which may change, where that is given; `note` is told of
    each change. Every method raises TenantsUnavailable where the database does not answer.
    """

    def __init__(
        self,
        database: Database,
        config: Config | None,
        now: Wall = time.time,
        note: Note | None = None,
    ) -> None:
        self.database = database
        self.config = config
        self._now, self._note_change, self._by = now, note, "command"

    def acting(self, by: str) -> TenantStore:
        """This store, whose changes are made by somebody else than the command."""
        store = copy(self)
        store._by = by
        return store

    def _note(self, act: Act, level: Level) -> None:
        if self._note_change is not None:
            self._note_change(act, level, self._by)

    def new_organisation(self, name: str, settings: LevelSettings) -> Organisation:
        """Raises AlreadyExists and InvalidTenant."""
        _check_name(name)
        made = Organisation(name, settings, self._now())
        with self._change() as (connection, revision):
            self._check(settings, [])
            _insert(connection, "organisation", made, revision, {"name": name})
        self._note("new", made)
        return made

    def new_team(self, organisation: str, name: str, settings: LevelSettings) -> Team:
        """Raises UnknownTenant for the organisation, AlreadyExists and InvalidTenant."""
        _check_name(name)
        made = Team(organisation, name, settings, self._now())
        with self._change() as (connection, revision):
            above = _in_force(connection, "organisation", organisation)
            self._check(settings, [above.settings])
            values = {"id": made.id, "organisation": organisation, "name": name}
            _insert(connection, "team", made, revision, values)
        self._note("new", made)
        return made

    def new_key(
        self,
        team: str | None,
        name: str,
        settings: LevelSettings,
        *,
        role: Role = "tenant",
        expires: float | None = None,
    ) -> tuple[Key, str]:
        """A key, and its text, which is kept nowhere. Raises UnknownTenant and InvalidTenant."""
        _check_name(name)
        if (team is None) is (role == "tenant"):
            raise InvalidTenant("a key of the role 'tenant' has a team, and only such a one")
        created = self._now()
        if expires is not None and not created < expires <= created + LONGEST_LIFE_S:
            raise InvalidTenant(
                f"a key expires in the future, in {LONGEST_LIFE_S // 86_400} days at the latest"
            )
        identity, text = new_key()
        made = Key(identity, team, name, role, hash_key(text), settings, created, expires=expires)
        with self._change() as (connection, revision):
            self._check(settings, _settings_above(connection, team))
            values: dict[str, Any] = {"id": identity, "team": team, "name": name, "role": role}
            values |= {"hash": made.hash, "expires": expires}
            _insert(connection, "key", made, revision, values)
        self._note("new", made)
        return made, text

    def change(self, kind: Kind, identity: str, changes: Mapping[str, Any]) -> Level:
        """Set some settings of a level; None takes one back. Raises UnknownTenant and
        InvalidTenant."""
        with self._change() as (connection, revision):
            level = _in_force(connection, kind, identity)
            try:
                settings = level.settings.changed(dict(changes))
            except ValidationError as error:
                fault = error.errors(include_url=False, include_input=False)[0]
                name = ".".join(map(str, fault["loc"])) or "settings"
                raise InvalidTenant(f"'{name}': {fault['msg']}", param=name) from None
            self._check(settings, _settings_above(connection, level.parent))
            values = {"settings": _text(settings), "revision": revision}
            changed = _update(connection, kind, identity, values)
        self._note("set", changed)
        return changed

    def revoke(self, kind: Kind, identity: str) -> Level:
        """Take a level out of use for good, and all below it. Raises UnknownTenant."""
        with self._change() as (connection, revision):
            level = _existing(connection, kind, identity)
            if level.revoked is not None:
                return level
            values = {"revoked": self._now(), "revision": revision}
            revoked = _update(connection, kind, identity, values)
        self._note("revoke", revoked)
        return revoked

    def rotate(self, identity: str, overlap_s: float) -> tuple[Key, str]:
        """A new text of a key; the old one is taken for `overlap_s` seconds more. Raises
        UnknownTenant and InvalidTenant."""
        if not 0 <= overlap_s <= LONGEST_OVERLAP_S:
            raise InvalidTenant(
                f"an overlap has {LONGEST_OVERLAP_S // 86_400} days at most", param="overlap"
            )
        with self._change() as (connection, revision):
            key = _in_force(connection, "key", identity)
            assert isinstance(key, Key)
            if key.expires is not None and key.expires <= self._now():
                raise InvalidTenant(f"the key {identity!r} has expired: make a new one")
            _, text = new_key(identity)
            values = {
                "hash": hash_key(text),
                "previous_hash": key.hash if overlap_s > 0 else None,
                "previous_until": self._now() + overlap_s if overlap_s > 0 else None,
                "revision": revision,
            }
            rotated = _update(connection, "key", identity, values)
        assert isinstance(rotated, Key)
        self._note("rotate", rotated)
        return rotated, text

    def get(self, kind: Kind, identity: str) -> Level:
        """Raises UnknownTenant."""
        with self.database.transaction() as connection:
            return _existing(connection, kind, identity)

    def list(
        self,
        kind: Kind,
        *,
        parent: str | None = None,
        after: str = "",
        limit: int = MOST_OF_PAGE,
    ) -> Sequence[Level]:
        """At most `limit` levels behind the id `after`, by their ids; revoked ones too."""
        identity = _IDS[kind]
        query = sa.select(_TABLES[kind]).where(identity > after).order_by(identity).limit(limit)
        if parent is not None:
            query = query.where(_PARENTS[kind] == parent)
        with self.database.transaction() as connection:
            return [_level(kind, row) for row in connection.execute(query)]

    def every(self, kind: Kind, parent: str | None = None) -> Sequence[Level]:
        """All levels of a kind, or those below one, by their ids."""
        found: list[Level] = []
        while page := self.list(kind, parent=parent, after=found[-1].id if found else ""):
            found += page
        return found

    def changes(self, since: int) -> Changes:
        """The levels that have changed after the revision `since`."""
        with self.database.transaction() as connection:
            revision = connection.execute(sa.select(tables.state.c.revision)).scalar_one()
            if revision == since:
                return Changes(revision, ())
            # what is above a level is read behind it, so that it is never missing
            levels = [
                _level(kind, row)
                for kind, table in reversed([*_TABLES.items()])
                for row in connection.execute(sa.select(table).where(table.c.revision > since))
            ]
        return Changes(revision, levels)

    def add_usage(self, pending: Pending) -> None:
        """Add what has been used since the last call."""
        counter = tables.state.c.usage_revision
        raised = sa.update(tables.state).values(usage_revision=counter + 1).returning(counter)
        with self.database.transaction() as connection:
            revision = connection.execute(raised).scalar_one()
            rows = [
                {
                    "level": level,
                    "period": period,
                    "requests": spent.requests,
                    "tokens": spent.tokens,
                    "revision": revision,
                }
                # in one order, so that no two servers wait for each other
                for (level, period), spent in sorted(pending.items(), key=lambda item: item[0])
            ]
            connection.execute(_ADD_USAGE, rows)

    def usage(self, since: int = 0) -> tuple[int, Sequence[UsageRow]]:
        """The counters that have changed after the revision `since`, and the revision now."""
        query = sa.select(tables.usage).where(tables.usage.c.revision > since)
        with self.database.transaction() as connection:
            revision = connection.execute(sa.select(tables.state.c.usage_revision)).scalar_one()
            if revision == since:
                return revision, ()
            return revision, [_usage(row) for row in connection.execute(query)]

    def usage_of(self, levels: Sequence[str], period: str) -> dict[str, UsageRow]:
        """What these levels have used in a month, as far as it is written."""
        table = tables.usage
        query = sa.select(table).where(table.c.period == period, table.c.level.in_(levels))
        with self.database.transaction() as connection:
            return {row.level: _usage(row) for row in connection.execute(query)}

    def _check(self, settings: LevelSettings, above: Sequence[LevelSettings]) -> None:
        known = self.config.policy_names if self.config is not None else None
        if known is None:
            known = (*(settings.policies or ()), *settings.required)
            known += (settings.default_policy,) if settings.default_policy is not None else ()
        if problems := list(level_problems(settings, above, known)):
            raise InvalidTenant("; ".join(problems))

    @contextmanager
    def _change(self) -> Iterator[tuple[Connection, int]]:
        """A transaction with a revision of its own. Raises AlreadyExists."""
        counter = tables.state.c.revision
        raised = sa.update(tables.state).values(revision=counter + 1).returning(counter)
        try:
            with self.database.transaction() as connection:
                yield connection, connection.execute(raised).scalar_one()
        except IntegrityError:
            raise AlreadyExists("one of that name is there already: choose another") from None


# both databases know this form
_ADD_USAGE = sa.text(
    "INSERT INTO token_usage (level, period, requests, tokens, revision) "
    "VALUES (:level, :period, :requests, :tokens, :revision) "
    "ON CONFLICT (level, period) DO UPDATE SET "
    "requests = token_usage.requests + excluded.requests, "
    "tokens = token_usage.tokens + excluded.tokens, revision = excluded.revision"
)


def _check_name(name: str) -> None:
    if re.fullmatch(TENANT_NAME.strip("^$"), name) is None:
        raise InvalidTenant(
            f"{name[:80]!r} is no name: it has letters, digits and . _ -, at most 63 of them, and "
            "begins with a letter or a digit",
            param="name",
        )


def _text(settings: LevelSettings) -> str:
    return settings.model_dump_json(exclude_defaults=True)


def _insert(
    connection: Connection, kind: Kind, level: Level, revision: int, values: Mapping[str, Any]
) -> None:
    common = {"settings": _text(level.settings), "created": level.created, "revision": revision}
    connection.execute(sa.insert(_TABLES[kind]).values(**values, **common))


def _update(connection: Connection, kind: Kind, identity: str, values: Mapping[str, Any]) -> Level:
    changed = sa.update(_TABLES[kind]).where(_IDS[kind] == identity).values(**values)
    connection.execute(changed)
    return _existing(connection, kind, identity)


def _existing(connection: Connection, kind: Kind, identity: str) -> Level:
    query = sa.select(_TABLES[kind]).where(_IDS[kind] == identity)
    # PostgreSQL takes no text with this character
    row = connection.execute(query).one_or_none() if "\0" not in identity else None
    if row is None:
        raise UnknownTenant(f"there is no {kind} {identity[:130]!r}")
    return _level(kind, row)


def _in_force(connection: Connection, kind: Kind, identity: str) -> Level:
    """The level, which neither is revoked nor has one above it that is."""
    level = _existing(connection, kind, identity)
    if level.revoked is not None:
        raise UnknownTenant(f"the {kind} {identity[:130]!r} is revoked")
    if isinstance(level, Team):
        _in_force(connection, "organisation", level.organisation)
    elif isinstance(level, Key) and level.team is not None:
        _in_force(connection, "team", level.team)
    return level


def _settings_above(connection: Connection, parent: str | None) -> list[LevelSettings]:
    """The settings of an organisation or a team, and of what is above it, the highest first."""
    if parent is None:
        return []
    level = _in_force(connection, "team" if "/" in parent else "organisation", parent)
    return [*_settings_above(connection, level.parent), level.settings]


def _level(kind: Kind, row: Any) -> Level:
    settings = LevelSettings.model_validate_json(row.settings)
    if kind == "organisation":
        return Organisation(row.name, settings, row.created, row.revoked)
    if kind == "team":
        return Team(row.organisation, row.name, settings, row.created, row.revoked)
    return Key(
        row.id,
        row.team,
        row.name,
        row.role,
        row.hash,
        settings,
        row.created,
        row.revoked,
        row.expires,
        row.previous_hash,
        row.previous_until,
    )


def _usage(row: Any) -> UsageRow:
    return UsageRow(row.level, row.period, row.requests, row.tokens)
