"""Lines that wait to be written, and whoever finds them."""

from __future__ import annotations

import errno
import hmac
import logging
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from guard.audit import AuditLog
from guard.audit import journal as journals
from guard.audit.chain import RECOVERED, encode, unlinked
from guard.audit.journal import Journal, Seal, left_by_killed
from guard.audit.signing import Signer
from tests.guard.audit.logs import checked, entries, key_in, opened, verdict, write

SEAL = partial(hmac.digest, b"key", digest="sha256")
LINES = [b'{"a":1}\n', b'{"b":2}\n', b'{"c":3}\n']


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit.jsonl"


@pytest.fixture
def journal(path: Path) -> Iterator[Journal]:
    journal = Journal(path, SEAL)
    yield journal
    journal.close()


def killed(journal: Journal) -> None:
    """What a kill does: the lock is gone, the file stays."""
    journal._let_go()


def left(path: Path, seal: Seal = SEAL) -> list[list[bytes]]:
    return [lines for _, lines in left_by_killed(path, seal)]


def test_nothing_is_there_before_the_first_line_and_behind_the_last(path: Path) -> None:
    journal = Journal(path, SEAL)
    assert list(path.parent.iterdir()) == []
    place = journal.put(LINES[0])
    (file,) = path.parent.iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    journal.done(place)
    assert not any(file.read_bytes())  # no personal field stays behind
    journal.close()
    assert list(path.parent.iterdir()) == []


def test_a_killed_process_leaves_what_was_not_done(path: Path, journal: Journal) -> None:
    for line in LINES:
        journal.put(line)
    assert left(path) == []  # its process lives
    killed(journal)
    assert left(path) == [LINES]


def test_the_halves_take_turns(
    path: Path, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journals, "_TURN_BYTES", 50)
    places = [journal.put(line) for line in LINES]
    halves = [place.half for place in places if place is not None]
    assert halves[0] is halves[1] is not halves[2]
    for number in range(2):
        journal.done(places[number])
    again = [journal.put(line) for line in LINES[:2]]
    assert again[0] is not None and again[0].half is halves[2]
    assert again[1] == places[0]  # empty again
    for each in (places, halves, again):
        each.clear()
    killed(journal)
    assert sorted(left(path)[0]) == sorted([LINES[2], LINES[0], LINES[1]])


def test_what_is_done_is_gone_while_others_wait_behind_it(path: Path, journal: Journal) -> None:
    places = [journal.put(line) for line in LINES]
    journal.done(places[0])
    (file,) = path.parent.iterdir()
    assert LINES[0] not in file.read_bytes()
    journal.done(places[1])
    places.clear()
    killed(journal)
    assert left(path) == [LINES[2:]]


def test_what_does_not_fit_has_no_place(
    path: Path, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journals, "HALF_BYTES", 130)
    assert None not in (journal.put(LINES[0]), journal.put(LINES[1]))
    assert journal.put(LINES[2]) is None
    journal.done(None)
    killed(journal)
    assert left(path) == [LINES[:2]]


def test_a_forked_process_has_a_journal_of_its_own_and_holds_no_other(
    path: Path, journal: Journal
) -> None:
    journal.put(LINES[0])
    (first,) = path.parent.iterdir()
    ready, tell = os.pipe()
    wait, end = os.pipe()
    if not (child := os.fork()):
        try:
            os.write(tell, b"1" if journal.put(LINES[1]) is not None else b"0")
            os.close(end)
            os.read(wait, 1)
        finally:
            os._exit(0)
    try:
        assert os.read(ready, 1) == b"1"
        assert len(list(path.parent.iterdir())) == 2
        assert left(path) == []
        killed(journal)  # the child lives on
        assert list(left_by_killed(path, SEAL)) == [(first, LINES[:1])]
    finally:
        os.write(end, b"1")
        os.waitpid(child, 0)
        for descriptor in (ready, tell, wait, end):
            os.close(descriptor)
    assert sorted(left(path)) == [LINES[:1], LINES[1:2]]


def test_a_record_that_was_cut_short_is_no_line(path: Path, journal: Journal) -> None:
    for line in LINES:
        journal.put(line)
    killed(journal)
    (file,) = path.parent.iterdir()
    data = bytearray(file.read_bytes())
    data[data.index(LINES[2]) + 3] ^= 1
    file.write_bytes(data)
    assert left(path) == [LINES[:2]]


def test_a_disk_without_room_is_told(
    path: Path,
    journal: Journal,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refuse(*_: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", refuse)
    with caplog.at_level(logging.WARNING):
        assert journal.put(LINES[0]) is None and journal.put(LINES[1]) is None
    assert caplog.text.count("no journal") == 1 and "No space left" in caplog.text
    assert list(path.parent.iterdir()) == []


def test_lines_that_were_written_before_the_kill_are_not_written_again(tmp_path: Path) -> None:
    path = write(tmp_path, 3)
    requests = [encode(unlinked(each)) for each in entries(path) if "event" not in each]
    journal = Journal(path, Signer(key_in(tmp_path)).seal)
    with opened(tmp_path) as log:
        log.append(verdict(), tenant="later")
    (last,) = [each for each in entries(path) if each.get("tenant") == "later"]
    unwritten = encode({**unlinked(last), "request_id": "unwritten"})
    for line in (*requests, unwritten, b"not JSON\n"):
        journal.put(line)
    killed(journal)
    before = entries(path)
    with opened(tmp_path):
        pass
    after = entries(path)[len(before) :]
    assert [each.get("request_id") for each in after if "event" not in each] == ["unwritten"]
    assert [each["lines"] for each in after if each.get("event") == RECOVERED] == [1]
    report = checked(path)
    assert report.faults == [] and list(tmp_path.glob("*.journal-*")) == []
    assert any("1 lines before it are of a process that was gone" in note for note in report.notes)


def test_lines_that_somebody_else_has_sealed_are_not_written(
    path: Path, journal: Journal, caplog: pytest.LogCaptureFixture
) -> None:
    journal.put(LINES[0])
    killed(journal)
    (file,) = path.parent.iterdir()
    with caplog.at_level(logging.ERROR):
        assert left(path, partial(hmac.digest, b"another key", digest="sha256")) == []
    assert f"{file}: another key has sealed them" in caplog.text
    file.rename(path.with_name(f"{path.name}.journal-copied"))
    assert left(path) == []


def test_lines_stay_until_the_log_is_opened_with_their_key(tmp_path: Path) -> None:
    path = write(tmp_path, 1)
    key = key_in(tmp_path)
    journal = Journal(path, Signer(key).seal)
    journal.put(encode({"time": "2026-11-30T00:00:00.000Z", "request_id": "waiting"}))
    killed(journal)
    other = tmp_path / "other"
    other.mkdir()
    with AuditLog(path, key=key_in(other)):
        pass
    assert len(list(tmp_path.glob("*.journal-*"))) == 1
    with opened(tmp_path):
        pass
    assert [each["lines"] for each in entries(path) if each.get("event") == RECOVERED] == [1]
    assert list(tmp_path.glob("*.journal-*")) == []


@pytest.mark.parametrize("name", ["audit[1].jsonl", "audit*.jsonl"])
def test_a_log_of_any_name_finds_its_journals(tmp_path: Path, name: str) -> None:
    journal = Journal(tmp_path / name, SEAL)
    journal.put(LINES[0])
    killed(journal)
    assert left(tmp_path / name) == [LINES[:1]]


def test_a_journal_that_cannot_be_read_is_told(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (path.parent / f"{path.name}.journal-folder").mkdir()
    os.mkfifo(path.parent / f"{path.name}.journal-pipe")
    with caplog.at_level(logging.ERROR):
        assert left(path) == []
    assert "journal-folder: Is a directory" in caplog.text
    assert "journal-pipe: Illegal seek" in caplog.text
