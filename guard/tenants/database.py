"""The tables of tenants and of policies, for SQLite and PostgreSQL alike, through SQLAlchemy's
Core."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.engine import URL, Connection, Engine, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from guard.config.policy_schema import LivePoliciesConfig
from guard.config.tenants_schema import TenantsConfig
from guard.errors import DatabaseUnavailable, GuardError, TenantsUnavailable

SCHEMA_VERSION = 1
_PATIENCE_S = 5
_TABLES = sa.MetaData()


def _columns() -> tuple[sa.Column[Any], ...]:
    """What all levels have: `revision` is that of the last change."""
    return (
        sa.Column("settings", sa.Text, nullable=False),
        sa.Column("created", sa.Double, nullable=False),
        sa.Column("revoked", sa.Double),
        sa.Column("revision", sa.BigInteger, nullable=False, index=True),
    )


state = sa.Table(
    "tenants_state",
    _TABLES,
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("revision", sa.BigInteger, nullable=False),
    sa.Column("usage_revision", sa.BigInteger, nullable=False),
    # one row: whoever changes anything takes its lock first, so that revisions come in order
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
)
organisations = sa.Table(
    "organisations", _TABLES, sa.Column("name", sa.Text, primary_key=True), *_columns()
)
teams = sa.Table(
    "teams",
    _TABLES,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("organisation", sa.ForeignKey("organisations.name"), nullable=False, index=True),
    sa.Column("name", sa.Text, nullable=False),
    *_columns(),
)
keys = sa.Table(
    "keys",
    _TABLES,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("team", sa.ForeignKey("teams.id"), index=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("role", sa.Text, nullable=False),
    sa.Column("hash", sa.Text, nullable=False),
    sa.Column("previous_hash", sa.Text),
    sa.Column("previous_until", sa.Double),
    sa.Column("expires", sa.Double),
    *_columns(),
)
usage = sa.Table(
    "token_usage",
    _TABLES,
    sa.Column("level", sa.Text, primary_key=True),
    sa.Column("period", sa.Text, primary_key=True),
    sa.Column("requests", sa.BigInteger, nullable=False),
    sa.Column("tokens", sa.BigInteger, nullable=False),
    sa.Column("revision", sa.BigInteger, nullable=False, index=True),
)
policy_versions = sa.Table(
    "policy_versions",
    _TABLES,
    # the order of all changes: of two servers that take the same number one is refused
    sa.Column("revision", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("policy", sa.Text, nullable=False),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("act", sa.Text, nullable=False),
    sa.Column("settings", sa.Text),
    sa.Column("by", sa.Text, nullable=False),
    sa.Column("why", sa.Text, nullable=False),
    sa.Column("time", sa.Double, nullable=False),
    sa.UniqueConstraint("policy", "number"),
)
Section = Literal["tenants", "live_policies"]
"""The section of the configuration that names a database."""
_UNAVAILABLE: Mapping[Section, type[DatabaseUnavailable]] = {
    "tenants": TenantsUnavailable,
    "live_policies": DatabaseUnavailable,
}


def url_in(config: TenantsConfig | LivePoliciesConfig, section: Section = "tenants") -> URL | None:
    """Where the database is; None where none is configured. Raises GuardError."""
    text = config.database
    if config.database_env is not None:
        text = os.environ.get(config.database_env)
        if not text:
            raise GuardError(
                f"the environment variable {config.database_env} is empty: put the URL of the "
                f"database into it, or set 'database' in [{section}]"
            )
    if text is None:
        return None
    if "://" not in text:
        return URL.create("sqlite+pysqlite", database=text)
    try:
        url = make_url(text)
    except ArgumentError:
        url = URL.create("")
    if url.drivername not in {"postgresql", "postgres"} or not url.database:
        # the URL may have a password in it
        raise GuardError(
            f"the database of [{section}] is the path of a SQLite file, or "
            "postgresql://USER@HOST/DATABASE"
        )
    return url.set(drivername="postgresql+psycopg")


class Database:
    """A connection pool, whose tables are made where they are missing.

    Raises GuardError where the database cannot be used, TenantsUnavailable, or DatabaseUnavailable
    for another `section`, where it does not answer.
    """

    def __init__(self, url: URL, section: Section = "tenants") -> None:
        self._section: Section = section
        self._shown = url.render_as_string(hide_password=True)
        is_file = url.drivername.startswith("sqlite")
        if is_file:
            self._make_file(Path(url.database or ""))
        options: dict[str, Any] = {"timeout": _PATIENCE_S}
        if not is_file:
            options = {
                "connect_timeout": _PATIENCE_S,
                "options": f"-c statement_timeout={1000 * _PATIENCE_S}",
            }
        self._engine: Engine = sa.create_engine(url, connect_args=options, pool_pre_ping=True)
        if is_file:
            sa.event.listen(self._engine, "connect", _prepare_sqlite)
        self._make_tables()

    def _make_file(self, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # whoever reads it knows all tenants, whoever writes it makes keys
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        except OSError as error:
            raise GuardError(
                f"{path} cannot be opened: {error.strerror}: check [{self._section}]"
            ) from None

    def _make_tables(self) -> None:
        with self.transaction() as connection:
            if connection.dialect.name == "postgresql":
                # of several servers that start at once, one makes the tables
                connection.execute(sa.text("SELECT pg_advisory_xact_lock(71935)"))
            else:
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            _TABLES.create_all(connection)
            version = connection.scalar(sa.select(state.c.version))
            if version is None:
                first = {"id": 1, "version": SCHEMA_VERSION, "revision": 0, "usage_revision": 0}
                connection.execute(sa.insert(state).values(first))
            elif version != SCHEMA_VERSION:
                raise GuardError(
                    f"the tables of {self._shown} are of version {version}, and this release "
                    f"knows {SCHEMA_VERSION}: use the release that made them"
                )

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """A transaction, undone where its block raises. Raises DatabaseUnavailable."""
        try:
            with self._engine.begin() as connection:
                yield connection
        except sa.exc.IntegrityError:
            raise
        except SQLAlchemyError as error:
            reason = str(getattr(error, "orig", None) or error).splitlines()[0]
            what = self._section.replace("_", " ")
            raise _UNAVAILABLE[self._section](
                f"the database of {what}, {self._shown}, does not answer: {reason}"
            ) from error

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()


def _prepare_sqlite(connection: Any, _: Any) -> None:
    """Readers do not wait for a writer, nor it for them; foreign keys are checked."""
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA foreign_keys=ON")
