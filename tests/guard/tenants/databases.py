"""A PostgreSQL server of the tests' own, where one is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy.engine import URL

NO_SERVER = "no PostgreSQL server is installed (Debian: apt-get install postgresql)"


def server_binaries() -> Path | None:
    """The folder with `initdb` and `pg_ctl`; None where there is none."""
    found = shutil.which("pg_ctl")
    if found is not None:
        return Path(found).parent
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"))
    return folders[-1].parent if folders else None


@contextmanager
def running_postgres() -> Iterator[URL]:
    """A PostgreSQL server that listens on a socket in a folder of its own. Skips where none is
    installed."""
    binaries = server_binaries()
    if binaries is None:
        pytest.skip(NO_SERVER)
    folder = Path(tempfile.mkdtemp(prefix="guard-pg-"))
    # the server refuses to run as root
    as_user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    if as_user:
        shutil.chown(folder, "postgres", "postgres")
    data = folder / "data"

    def run(*command: str) -> None:
        subprocess.run([*as_user, *command], check=True, capture_output=True, cwd=folder)

    control = str(binaries / "pg_ctl")
    try:
        run(str(binaries / "initdb"), "-D", str(data), "-U", "guard", "-A", "trust", "--no-sync")
        options = f"-k {folder} -c listen_addresses= -c fsync=off"
        log = str(folder / "log")
        run(control, "-D", str(data), "-o", options, "-l", log, "-w", "start")
        yield URL.create(
            "postgresql", username="guard", database="postgres", query={"host": str(folder)}
        )
    finally:
        if (data / "postmaster.pid").exists():
            run(control, "-D", str(data), "-m", "immediate", "stop")
        shutil.rmtree(folder, ignore_errors=True)
