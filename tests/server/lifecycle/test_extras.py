"""Servers and proxies are imported where none of the optional extras is installed."""

from __future__ import annotations

import subprocess
import sys

import pytest

# of the extras tenants, replicas, stores, audit and dev
OPTIONAL = ("sqlalchemy", "psycopg", "jwt", "redis", "fsspec", "s3fs", "cryptography", "playwright")
PROGRAM = """
import sys
from importlib import import_module


class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in sys.argv[2:]:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, Missing())
import_module(sys.argv[1])
"""


@pytest.mark.parametrize("module", ["server.lifecycle.run", "server.proxy.run", "guard.cli"])
def test_what_runs_needs_no_extra(module: str) -> None:
    command = [sys.executable, "-c", PROGRAM, module, *OPTIONAL]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
