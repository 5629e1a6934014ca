"""Verdicts of vLLM's requests into the configuration's audit log and vLLM's metrics."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from prometheus_client import REGISTRY

from guard.audit import AuditLog
from guard.verdict import Verdict
from server.observe.metrics import VerdictMetrics
from server.observe.recorder import Recorder


class Recording:
    """A `Record` of `outputs.patch`; the first front end of the process opens log and metrics."""

    def __init__(self, audit_log: Path | None) -> None:
        self._path = audit_log
        self._recorder: Recorder | None = None

    def open(self) -> None:
        """Open the audit log and register the metrics. Raises GuardError."""
        if self._recorder is None:
            audit = AuditLog(self._path) if self._path else None
            self._recorder = Recorder(_metrics(), audit)

    def __call__(self, verdict: Verdict) -> None:
        if self._recorder is not None:
            # vLLM has no tenants
            self._recorder.record(verdict, tenant="")


@cache
def _metrics() -> VerdictMetrics:
    # a second registration of the same names would fail
    return VerdictMetrics(REGISTRY)
