from __future__ import annotations

import json
from pathlib import Path

from guard.audit.journal import Journal
from guard.audit.signing import Signer
from tests.guard.audit.logs import key_in, opened, write
from tests.guard.commands.running import run


def test_a_log_is_checked_with_the_printed_key(tmp_path: Path) -> None:
    made = run("audit", "key", "--new", tmp_path / "audit.pem")
    assert made.exit_code == 0
    assert (tmp_path / "audit.pem").stat().st_mode & 0o777 == 0o600
    public = made.output.strip()
    assert run("audit", "key", tmp_path / "audit.pem").output.strip() == public
    path = write(tmp_path, 3)
    whole = run("audit", "verify", path, "--key", public)
    assert whole.exit_code == 0 and whole.output.startswith("whole: 5 chained lines, 1 to 5")
    path.write_bytes(path.read_bytes().replace(b'"pass"', b'"fail"', 1))
    altered = run("audit", "verify", path, "--key", public)
    assert altered.exit_code == 1
    assert f"fault: {path}:2: was altered" in altered.output


def test_a_key_is_never_overwritten(tmp_path: Path) -> None:
    run("audit", "key", "--new", tmp_path / "audit.pem")
    again = run("audit", "key", "--new", tmp_path / "audit.pem")
    assert again.exit_code == 1 and "File exists" in again.output


def test_a_part_is_exported_and_a_tenant_erased(tmp_path: Path) -> None:
    path = write(tmp_path, 3)
    target = tmp_path / "part.jsonl"
    done = run("audit", "export", path, "--tenant", "acme", "--output", target)
    assert done.output == f"3 lines to {target}\n"
    assert all(json.loads(line)["tenant"] == "acme" for line in target.read_text().splitlines())
    assert run("audit", "erase", path, "--tenant", "acme").output == f"{path}: erased in 3 lines\n"
    assert run("audit", "export", path, "--tenant", "acme").output == ""


def test_wrong_options_are_told(tmp_path: Path) -> None:
    path = write(tmp_path, 1)
    for arguments in (
        ("--to", "syslog"),
        ("--to", "parquet"),
        ("--address", "udp://h:1"),
        ("--since", "yesterday"),
        ("--output", path),
    ):
        assert run("audit", "export", path, *arguments).exit_code == 2
    assert path.stat().st_size


def test_an_erasure_says_that_lines_of_a_killed_process_come_behind_it(tmp_path: Path) -> None:
    path = write(tmp_path, 1)
    journal = Journal(path, Signer(key_in(tmp_path)).seal)
    journal.put(b'{"tenant":"acme"}\n')
    alive = run("audit", "erase", path, "--tenant", "acme")
    assert alive.exit_code == 0 and alive.output == f"{path}: erased in 1 lines\n"
    (file,) = tmp_path.glob("*.journal-*")
    journal._let_go()  # as a kill leaves it
    left = run("audit", "erase", path, "--tenant", "acme")
    assert left.exit_code == 1 and f"{file}: has lines of a process" in left.output
    with opened(tmp_path):
        pass
    again = run("audit", "erase", path, "--tenant", "acme")
    assert again.exit_code == 0 and again.output == f"{path}: erased in 1 lines\n"
