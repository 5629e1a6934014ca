"""Verdicts of rows that wait for the text screens."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from guard.verdict import Verdict
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
