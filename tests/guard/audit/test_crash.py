"""What a process that is killed leaves, and several processes on one file."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from guard.audit.chain import RECOVERED
from guard.audit.chain_file import checkpoint_path
from tests.guard.audit.logs import checked, entries, key_in, opened, verdict, write

_ENDLESS = """
import sys, time
from pathlib import Path
from guard.audit import AuditLog
from guard.verdict import Verdict
log = AuditLog(Path(sys.argv[1]), key=Path(sys.argv[2]))
number = 0
while True:
    log.append(Verdict(str(number), "m", "p", "pass", (), 1.0), tenant="t")
    print(number, flush=True)
    number += 1
    time.sleep(0.005)
"""

_COUNTED = """
import sys, time
from pathlib import Path
from guard.audit import AuditLog
from guard.verdict import Verdict
with AuditLog(Path(sys.argv[1]), key=Path(sys.argv[2])) as log:
    for number in range(300):
        log.append(Verdict(f"{sys.argv[3]}-{number}", "m", "p", "pass", (), 1.0), tenant="t")
        time.sleep(0.002)
"""


def journals(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if ".journal-" in path.name]


def _requests(*paths: Path) -> list[str]:
    lines = [entry for path in paths for entry in entries(path)]
    return [entry["request_id"] for entry in lines if "event" not in entry]


def test_a_killed_process_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    process = subprocess.Popen(
        [sys.executable, "-c", _ENDLESS, str(path), str(key_in(tmp_path))],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    first = process.stdout.readline()
    time.sleep(1.5)
    os.kill(process.pid, signal.SIGKILL)
    appended = [line.strip() for line in [first, *process.stdout] if line.endswith("\n")]
    process.wait()
    written = _requests(path)
    assert len(written) > 10 and written == [str(number) for number in range(len(written))]

    write(tmp_path, 1)
    report = checked(path)
    assert report.faults == []
    assert [note for note in report.notes if "the chain was broken off: it is known to" in note]
    (broken,) = [entry for entry in entries(path) if "known_to" in entry]
    assert broken["known_to"] == broken["seq"] - 1 and broken["torn"] == 0
    # the last one was perhaps accepted, and the process killed before it could say so
    all_of_it = _requests(path)[:-1]
    assert all_of_it == [str(number) for number in range(len(all_of_it))]
    assert len(appended) <= len(all_of_it) <= len(appended) + 1
    told = [each["lines"] for each in entries(path) if each.get("event") == RECOVERED]
    assert sum(told) == len(all_of_it) - len(written)
    assert journals(tmp_path) == []


def test_half_a_line_of_a_crash_is_told_from_a_removed_one(tmp_path: Path) -> None:
    path = write(tmp_path, 3)
    whole = path.read_bytes()
    path.write_bytes(whole[:-30])  # as a machine that lost power
    checkpoint_path(path).unlink()
    at_end = checked(path)
    assert at_end.faults == [] and "half a line: a crash" in at_end.notes[0]
    write(tmp_path, 1)
    report = checked(path)
    assert report.faults == []
    assert f"{path}:5: half a line, of a crash" in report.notes


def test_a_killed_process_whose_file_was_moved_away(tmp_path: Path) -> None:
    path = write(tmp_path, 1)
    program = """
import os, signal, sys
from pathlib import Path
from guard.audit import AuditLog
log = AuditLog(Path(sys.argv[1]), key=Path(sys.argv[2]))
log.append_event("erasure", erasure="er-1")
os.kill(os.getpid(), signal.SIGKILL)
"""
    command = [sys.executable, "-c", program, str(path), str(key_in(tmp_path))]
    assert subprocess.run(command).returncode == -signal.SIGKILL
    old = path.rename(tmp_path / "audit.1")
    assert entries(old)[-1]["erasure"] == "er-1"
    write(tmp_path, 1)
    report = checked(old, path)
    assert report.faults == []
    assert any("goes on from the checkpoint" in note for note in report.notes)


def test_processes_share_a_chain_through_a_rotation_without_a_signal(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", _COUNTED, str(path), str(key_in(tmp_path)), str(worker)]
        )
        for worker in range(2)
    ]
    deadline = time.monotonic() + 60
    while not (path.exists() and path.read_bytes().count(b"\n") > 100):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    old = path.rename(tmp_path / "audit.1")
    path.touch()  # as logrotate's `create`
    assert [worker.wait(60) for worker in workers] == [0, 0]
    report = checked(old, path)
    assert (report.faults, report.notes) == ([], [])
    written = _requests(old, path)
    assert len(written) == 600
    for worker in range(2):
        own = [name for name in written if name.startswith(f"{worker}-")]
        assert own == [f"{worker}-{number}" for number in range(300)]
    assert entries(old)[-1]["reason"] == "rotated" and len(_requests(path)) > 0


def test_reopening_in_mid_chain_seals_the_old_file_for_all(tmp_path: Path) -> None:
    with opened(tmp_path) as first, opened(tmp_path) as second:
        first.append_event("a")
        second.append_event("b")
        old = first.path.rename(tmp_path / "audit.1")
        first.reopen()
        second.append_event("c")
        first.append(verdict(), tenant="t")
    report = checked(old, first.path)
    assert (report.faults, report.notes) == ([], [])
    events = [entry.get("event") for entry in entries(first.path)]
    assert "c" in events and entries(old)[-1]["reason"] == "rotated"
    # each file alone is checked from where it begins
    alone = checked(first.path)
    assert alone.faults == [] and alone.first == report.first + len(entries(old))
    # and a file that is left out is missed
    third = write(tmp_path, 1).rename(tmp_path / "audit.2")
    write(tmp_path, 1)
    assert checked(old, third, first.path).faults == []
    assert any("missing" in fault for fault in checked(old, first.path).faults)


def test_lines_for_which_the_disk_has_no_room_are_told(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    program = """
import resource, sys
from pathlib import Path
from guard.audit import AuditLog
from guard.verdict import Verdict
log = AuditLog(Path(sys.argv[1]), key=Path(sys.argv[2]))
refused, taken = [], []
log.tell(refused.append, lambda: taken.append(1))
log.append_event("start")
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (log.path.stat().st_size + 1300, hard))
for number in range(6):
    log.append(Verdict(str(number), "m", "p", "pass", (), 1.0), tenant="t")
try:
    log.append_event("refused")
except OSError as error:
    print(error.errno)
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
log.append(Verdict("after", "m", "p", "pass", (), 1.0), tenant="t")
log.close()
print(len(refused))
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(path), str(key_in(tmp_path))],
        capture_output=True,
        text=True,
        check=True,
    )
    errno, refused = map(int, done.stdout.split())
    assert errno == 27 and 0 < refused < 6
    assert checked(path).faults == []
    assert [entry["lines"] for entry in entries(path) if "lines" in entry] == [refused + 1]
    written = _requests(path)
    assert written[-1] == "after" and len(written) == 7 - refused
