"""Chained lines while the disk is full: they wait, in their order, and are lost only at the end."""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from guard.audit import writer
from tests.guard.audit.logs import checked, entries, opened, verdict


@contextmanager
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def refuse(file: int, content: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", refuse)
        yield


def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def requests(path: Path) -> list[str]:
    return [entry["request_id"] for entry in entries(path) if "request_id" in entry]


def test_lines_wait_until_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(writer, "RETRY_S", 0.02)
    lost: list[OSError] = []
    with opened(tmp_path) as log, caplog.at_level(logging.ERROR):
        log.tell(lost.append, lambda: None)
        log.append(verdict("before"), tenant="t")
        until(lambda: requests(log.path) == ["before"])
        with full_disk(monkeypatch):
            for number in range(5):
                log.append(verdict(str(number)), tenant="t")
            until(lambda: "disk is full" in caplog.text)
            log.append(verdict("5"), tenant="t")
            with pytest.raises(OSError, match="No space"):
                log.append_event("erasure", id="one who waits is told")
            assert requests(log.path) == ["before"]
        until(lambda: len(requests(log.path)) == 7)
        assert "has room again" in caplog.text
    assert requests(log.path) == ["before", *map(str, range(6))]
    assert not lost
    assert [entry["lines"] for entry in entries(log.path) if "lines" in entry] == [1], "the event"
    assert checked(log.path).faults == []


def test_those_that_wait_when_the_log_is_closed_stay_in_the_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost: list[OSError] = []
    log = opened(tmp_path)
    log.tell(lost.append, lambda: None)
    log.append(verdict("before"), tenant="t")
    until(lambda: requests(log.path) == ["before"])
    with full_disk(monkeypatch):
        for number in range(3):
            log.append(verdict(str(number)), tenant="t")
        log.close()
    assert not lost and requests(log.path) == ["before"]
    with opened(tmp_path):
        assert requests(log.path) == ["before", *map(str, range(3))]
    assert checked(log.path).faults == [] and list(tmp_path.glob("*.journal-*")) == []


def test_without_a_journal_those_that_wait_when_the_log_is_closed_are_lost_and_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost: list[OSError] = []
    log = opened(tmp_path)
    log.tell(lost.append, lambda: None)
    with full_disk(monkeypatch):
        for number in range(3):
            log.append(verdict(str(number)), tenant="t")
        log.close()
    assert [error.errno for error in lost] == [errno.ENOSPC] * 3
    assert requests(log.path) == []


def test_there_is_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "RETRY_S", 0.02)
    monkeypatch.setattr(writer.QueuedWriter.__init__, "__kwdefaults__", {"most": 4})
    with opened(tmp_path) as log:
        with full_disk(monkeypatch):
            refused = 0
            for number in range(10):
                try:
                    log.append(verdict(str(number)), tenant="t")
                except OSError:
                    refused += 1
                time.sleep(0.05)  # they are tried, and come back, again and again
        assert refused == 6
        until(lambda: len(requests(log.path)) == 4)
    assert requests(log.path) == ["0", "1", "2", "3"]
    assert [entry["lines"] for entry in entries(log.path) if "lines" in entry] == [6]
