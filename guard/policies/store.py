"""The versions of all policies in a database, which several servers may share."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.exc import IntegrityError

from guard.config.schema import Config
from guard.errors import PolicyChanged, VersionNotFound
from guard.policies.versions import Change, Version
from guard.tenants.database import Database, policy_versions, url_in

_ROWS = policy_versions.c


class VersionStore:
    """Versions are added and never changed; thread-safe. `now` gives seconds since the epoch.

    Every method raises DatabaseUnavailable where the database does not answer.
    """

    def __init__(self, database: Database, now: Callable[[], float] = time.time) -> None:
        self.database, self._now = database, now

    def revision(self) -> int:
        """The number of the last change of any policy, 0 before the first."""
        with self.database.transaction() as connection:
            return connection.scalar(sa.select(sa.func.max(_ROWS.revision))) or 0

    def current(self) -> Mapping[str, Version]:
        """The last version of each policy, of those that were removed too, in the order of their
        first ones."""
        return self._last()

    def of_file(self) -> Mapping[str, Version]:
        """The last version of each policy that the configuration file gave it."""
        return self._last(_ROWS.act == "file")

    def append(self, changes: Sequence[Change], after: int) -> Sequence[Version]:
        """Add versions, all or none, behind the revision `after`, which was the last one.

        Raises PolicyChanged where it was not.
        """
        try:
            with self.database.transaction() as connection:
                last = connection.scalar(sa.select(sa.func.max(_ROWS.revision))) or 0
                if last != after:
                    raise _overtaken()
                return [
                    self._insert(connection, change, revision)
                    for revision, change in enumerate(changes, after + 1)
                ]
        except IntegrityError:
            raise _overtaken() from None

    def version(self, policy: str, number: int) -> Version:
        """Raises VersionNotFound."""
        query = sa.select(policy_versions).where(_ROWS.policy == policy, _ROWS.number == number)
        with self.database.transaction() as connection:
            row = connection.execute(query).one_or_none()
        if row is None:
            raise VersionNotFound(f"The policy {policy[:130]!r} has no version {number}.")
        return _version(row)

    def versions(self, policy: str, *, limit: int, before: int | None = None) -> Sequence[Version]:
        """The versions of a policy, the newest first: those before number `before`."""
        query = sa.select(policy_versions).where(_ROWS.policy == policy)
        if before is not None:
            query = query.where(_ROWS.number < before)
        query = query.order_by(_ROWS.number.desc()).limit(limit)
        with self.database.transaction() as connection:
            return [_version(row) for row in connection.execute(query)]

    def _last(self, *conditions: sa.ColumnElement[bool]) -> dict[str, Version]:
        last = sa.select(sa.func.max(_ROWS.revision)).where(*conditions).group_by(_ROWS.policy)
        query = sa.select(policy_versions).where(_ROWS.revision.in_(last))
        with self.database.transaction() as connection:
            rows = connection.execute(query.order_by(_ROWS.revision)).all()
        return {row.policy: _version(row) for row in rows}

    def _insert(self, connection: Connection, change: Change, revision: int) -> Version:
        mine = sa.select(sa.func.max(_ROWS.number)).where(_ROWS.policy == change.policy)
        made = Version(change, (connection.scalar(mine) or 0) + 1, revision, self._now())
        settings = None if change.settings is None else json.dumps(change.settings)
        facts = {"policy": change.policy, "act": change.act, "by": change.by, "why": change.why}
        numbers = {"revision": revision, "number": made.number, "time": made.time}
        row = sa.insert(policy_versions).values(settings=settings, **facts, **numbers)
        connection.execute(row)
        return made


def store_of(config: Config) -> VersionStore:
    """The store that a configuration names. Raises GuardError."""
    url = url_in(config.live_policies, "live_policies")
    assert url is not None
    return VersionStore(Database(url, "live_policies"))


def _overtaken() -> PolicyChanged:
    return PolicyChanged(
        "Somebody else has changed a policy at the same time: look, and try again."
    )


def _version(row: Any) -> Version:
    settings = None if row.settings is None else json.loads(row.settings)
    change = Change(row.policy, row.act, settings, row.by, row.why)
    return Version(change, row.number, row.revision, row.time)
