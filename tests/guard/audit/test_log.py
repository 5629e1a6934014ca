from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from guard.audit import AuditLog
from guard.errors import GuardError
from guard.verdict import GuardVerdict, Verdict

NOON = datetime(2026, 1, 31, 12, 0, 0, 5000, UTC)


def verdict(request_id: str = "r1", score: float | None = 0.7) -> Verdict:
    fired = GuardVerdict("hp", "character/harry-potter", "steer", score, 0.5, True, "steer", 0)
    return Verdict(request_id, "tiny", "strict", "steered", (fired,), 12.5)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_a_line_is_the_verdict_with_time_and_tenant(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "audit.jsonl"
    with AuditLog(path, now=lambda: NOON) as log:
        log.append(verdict(), tenant="acme")
        assert lines(path) == [  # readable at once, not at closing
            {"time": "2026-01-31T12:00:00.005Z", "tenant": "acme"}
            | json.loads(json.dumps(verdict().as_dict()))
        ]


def test_old_lines_stay(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    for number in range(3):
        with AuditLog(path) as log:
            log.append(verdict(f"r{number}"), tenant="")
    assert [line["request_id"] for line in lines(path)] == ["r0", "r1", "r2"]


def test_half_a_line_of_a_crash_spoils_no_other(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    path.write_text('{"time": "2026', "utf-8")
    with AuditLog(path) as log:
        log.append(verdict(), tenant="")
    assert json.loads(path.read_text("utf-8").splitlines()[1])["request_id"] == "r1"


def test_threads_mix_no_lines_and_lose_none(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    with AuditLog(path) as log:

        def work(worker: int) -> None:
            for number in range(100):
                log.append(verdict(f"{worker}-{number}"), tenant="x" * 3000)

        threads = [threading.Thread(target=work, args=(worker,)) for worker in range(8)]
        for thread in threads:
            thread.start()
        log.reopen()  # a reload in the middle
        for thread in threads:
            thread.join()
    written = {line["request_id"] for line in lines(path)}
    assert written == {f"{worker}-{number}" for worker in range(8) for number in range(100)}


def test_processes_mix_no_lines_and_lose_none(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    program = """
import sys
from pathlib import Path
from guard.audit import AuditLog
from guard.verdict import Verdict
log = AuditLog(Path(sys.argv[1]))
for number in range(200):
    verdict = Verdict(f"{sys.argv[2]}-{number}", "m", "p", "pass", (), 1.0)
    log.append(verdict, tenant="x" * 5000)
    log.reopen()  # looks whether the file ends in half a line, while others write
"""
    workers = [
        subprocess.Popen([sys.executable, "-c", program, str(path), str(worker)])
        for worker in range(3)
    ]
    assert [worker.wait(60) for worker in workers] == [0, 0, 0]
    written = {line["request_id"] for line in lines(path)}
    assert written == {f"{worker}-{number}" for worker in range(3) for number in range(200)}


def test_rotation_goes_on_in_the_new_file(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    with AuditLog(path) as log:
        log.append(verdict("old"), tenant="")
        path.rename(tmp_path / "audit.1")
        log.reopen()
        log.append(verdict("new"), tenant="")
    assert [line["request_id"] for line in lines(tmp_path / "audit.1")] == ["old"]
    assert [line["request_id"] for line in lines(path)] == ["new"]


def test_a_score_that_is_no_number_does_not_lose_the_line(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    with AuditLog(path) as log:
        log.append(verdict(score=float("nan")), tenant="")
    assert lines(path)[0]["guards"][0]["score"] is None


def test_a_newline_in_a_tenant_forges_no_line(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    with AuditLog(path) as log:
        log.append(verdict(), tenant='x"}\n{"forged": 1}\u2028')
    assert len(path.read_bytes().splitlines()) == 1


def test_a_log_that_cannot_be_opened_or_is_closed_says_so(tmp_path: Path) -> None:
    with pytest.raises(GuardError, match="cannot be opened"):
        AuditLog(tmp_path)
    log = AuditLog(tmp_path / "audit.jsonl")
    log.close()
    log.close()
    with pytest.raises(OSError, match="closed"):
        log.append(verdict(), tenant="")


def test_a_full_disk_leaves_no_half_a_line(tmp_path: Path) -> None:
    """As many lines as there is room for, all whole; the next one after the disk has room again."""
    path = tmp_path / "audit.jsonl"
    program = """
import resource, sys
from pathlib import Path
from guard.audit import AuditLog
from guard.verdict import Verdict
log = AuditLog(Path(sys.argv[1]))
verdict = Verdict("r", "m", "p", "pass", (), 1.0)
log.append(verdict, tenant="t")
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
room = log.path.stat().st_size * 7 // 2
resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
lost = 0
for _ in range(6):
    try:
        log.append(verdict, tenant="t")
    except OSError:
        lost += 1
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
log.append(verdict, tenant="after")
print(lost)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "4"
    assert [line["tenant"] for line in lines(path)] == ["t", "t", "t", "after"]


def test_half_a_line_that_cannot_be_taken_back_spoils_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "audit.jsonl"
    real_write = os.write

    def full(file: int, content: bytes) -> int:
        if content.startswith(b"half"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return real_write(file, content[:4]) if len(content) > 4 else real_write(file, content)

    def refused(file: int, size: int) -> None:
        raise OSError(errno.EPERM, "append-only")

    with AuditLog(path) as log:
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", full)
            patch.setattr(os, "ftruncate", refused)
            with pytest.raises(OSError, match="half a line"):
                log.append(verdict("lost"), tenant="")
        assert path.read_bytes() == b'{"time"'[:4] + b'me":'[:4]
        log.append(verdict("good"), tenant="")
    assert json.loads(path.read_text("utf-8").splitlines()[1])["request_id"] == "good"


def test_names_of_clients_are_written_safely(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    with AuditLog(path) as log:
        log.append(Verdict("r", "\ud800" + "é" * 10_000, "p", "pass", (), 1.0), tenant="")
    (line,) = lines(path)
    assert line["model"] == "?" + "é" * 511


def test_a_line_of_no_request_says_its_event(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    with AuditLog(path, now=lambda: NOON) as log:
        log.append_event("erasure", erasure="er-1", state="in force")
        log.append(verdict(), tenant="acme")
    first, second = lines(path)
    assert first == {
        "time": "2026-01-31T12:00:00.005Z",
        "event": "erasure",
        "erasure": "er-1",
        "state": "in force",
    }
    assert "event" not in second
