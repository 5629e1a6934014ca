"""Verdicts of rows that wait for the text screens."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest

from guard.verdict import Shadow, Verdict
from server.observe.metrics import Metrics
from server.observe.recorder import Recorder


@dataclass
class _Row:
    record_id: str
    tenant: str = "t"
    request_id: str = "X"


class _KeptVerdicts(Recorder):
    def __init__(self) -> None:
        super().__init__(Metrics().verdicts, None)
        self.kept: list[tuple[str, Any]] = []

    def record(self, verdict: Verdict, tenant: str) -> None:
        self.kept.append((verdict.request_id, verdict.outcome))


def _verdict(record_id: str) -> Verdict:
    return Verdict(record_id, "m", "p", "pass", (), 1.0)


def _flagged(verdict: Verdict) -> Verdict:
    return replace(verdict, outcome="flagged")


def test_requests_with_the_same_id_are_independent() -> None:
    recorder = _KeptVerdicts()
    first, second = recorder.defer(), recorder.defer()
    recorder(_Row(first), _verdict("a"))  # type: ignore[arg-type]
    recorder(_Row(second), _verdict("b"))  # type: ignore[arg-type]
    recorder.discard(second)
    recorder.release(second, _flagged)
    recorder.release(first, _flagged)
    recorder(_Row(""), _verdict("c"))  # type: ignore[arg-type]
    assert recorder.kept == [("a", "flagged"), ("c", "pass")]


def test_a_row_that_ends_after_release_has_the_screens_findings() -> None:
    recorder = _KeptVerdicts()
    record_id = recorder.defer()
    recorder.release(record_id, _flagged)
    assert recorder.kept == []
    recorder(_Row(record_id), _verdict("a"))  # type: ignore[arg-type]
    assert recorder.kept == [("a", "flagged")]


def test_deferred_rows_are_kept_while_new_requests_come() -> None:
    recorder = _KeptVerdicts()
    waiting = recorder.defer()
    recorder(_Row(waiting), _verdict("a"))  # type: ignore[arg-type]
    for _ in range(5000):
        record_id = recorder.defer()
        recorder.release(record_id, _flagged)
    recorder.release(waiting, _flagged)
    assert recorder.kept == [("a", "flagged")]


class _FullDisk:
    """An audit log that fails while `is_full`."""

    is_full = True
    is_queued = False

    def tell(self, *callbacks: object) -> None:
        pass

    def append(self, verdict: Verdict, *, tenant: str, shadow: Shadow | None) -> None:
        if self.is_full:
            raise OSError(28, "No space left on device")


def test_lost_lines_are_counted_and_told_once(caplog: pytest.LogCaptureFixture) -> None:
    metrics, disk = Metrics(), _FullDisk()
    recorder = Recorder(metrics.verdicts, disk)  # type: ignore[arg-type]
    for number in range(500):
        recorder.record(_verdict(str(number)), "t")
    assert [record.message for record in caplog.records] == [
        "the audit log lost a line (1 so far): [Errno 28] No space left on device"
    ]
    assert b"inference_guard_audit_failures_total 500.0" in metrics.render()
    disk.is_full = False
    recorder.record(_verdict("good"), "t")
    recorder.record(_verdict("good"), "t")
    assert [record.message for record in caplog.records[1:]] == [
        "the audit log is written again; it lost 500 lines"
    ]
