"""The databases of the tests of tenants."""

from tests.guard.tenants.conftest import clock, database_url, postgres

__all__ = ["clock", "database_url", "postgres"]
