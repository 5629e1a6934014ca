"""A PostgreSQL server of the tests' own, where one is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy.engine import URL

# the server refuses to run as root
_AS_USER = ("runuser", "-u", "postgres", "--") if os.geteuid() == 0 else ()
NO_SERVER = "no PostgreSQL server is installed (Debian: apt-get install postgresql)"


def server_binaries() -> Path | None:
    """The folder with `initdb` and `pg_ctl`; None where there is none."""
    found = shutil.which("pg_ctl")
    if found is not None:
        return Path(found).parent
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"))
    return folders[-1].parent if folders else None


@dataclass(frozen=True)
class Postgres:
    """A PostgreSQL server that listens on a socket in a folder of its own."""

    folder: Path
    binaries: Path

    @classmethod
    def new(cls) -> Postgres | None:
        """A new one that runs; None where none is installed."""
        binaries = server_binaries()
        if binaries is None:
            return None
        server = cls(Path(tempfile.mkdtemp(prefix="guard-pg-")), binaries)
        if _AS_USER:
            shutil.chown(server.folder, "postgres", "postgres")
        try:
            server._run("initdb", "-U", "guard", "-A", "trust", "--no-sync")
            server.start()
        except BaseException:
            server.remove()
            raise
        return server

    @property
    def url(self) -> URL:
        return URL.create(
            "postgresql", username="guard", database="postgres", query={"host": str(self.folder)}
        )

    def start(self) -> None:
        options = f"-k {self.folder} -c listen_addresses= -c fsync=off"
        self._run("pg_ctl", "-o", options, "-l", str(self.folder / "log"), "-w", "start")

    def stop(self) -> None:
        """At once, as a crash would."""
        self._run("pg_ctl", "-m", "immediate", "stop")

    def remove(self) -> None:
        """Stop it, if it runs, and delete its folder."""
        if (self.folder / "data" / "postmaster.pid").exists():
            self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _run(self, program: str, *arguments: str) -> None:
        data = str(self.folder / "data")
        command = [*_AS_USER, str(self.binaries / program), "-D", data, *arguments]
        subprocess.run(command, check=True, capture_output=True, cwd=self.folder)


@contextmanager
def running_postgres() -> Iterator[URL]:
    """The URL of a PostgreSQL server of its own. Skips where none is installed."""
    server = Postgres.new()
    if server is None:
        pytest.skip(NO_SERVER)
    try:
        yield server.url
    finally:
        server.remove()
