from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL

from guard.config.tenants_schema import TenantsConfig
from guard.tenants.database import Database, url_in
from guard.tenants.store import TenantStore
from tests.guard.tenants.databases import running_postgres


class Clock:
    """Both kinds of time, which pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(scope="session")
def postgres() -> Iterator[URL]:
    with running_postgres() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL, or the path, of an empty database of each kind."""
    if request.param == "sqlite":
        return str(tmp_path / "tenants.sqlite")
    server: URL = request.getfixturevalue("postgres")
    engine = sa.create_engine(server.set(drivername="postgresql+psycopg"))
    with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        name = f"t{connection.scalar(sa.text('select count(*) from pg_database'))}"
        connection.execute(sa.text(f"create database {name}"))
    engine.dispose()
    return server.set(database=name).render_as_string()


def opened(url: str) -> Database:
    found = url_in(TenantsConfig(database=url))
    assert found is not None
    return Database(found)


@pytest.fixture
def store(database_url: str, clock: Clock) -> Iterator[TenantStore]:
    database = opened(database_url)
    yield TenantStore(database, None, clock)
    database.close()
