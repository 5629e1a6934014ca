"""Verdicts of vLLM's requests into the configuration's audit log and vLLM's metrics."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

from prometheus_client import REGISTRY

from guard.audit import AuditLog
from guard.verdict import Verdict
from server.observe.metrics import VerdictMetrics
from server.observe.recorder import Recorder


class Recording:
    """A `Record` of `outputs.patch`; the first front end of the process opens log and metrics."""

    def __init__(self) -> None:
        self._recorder: Recorder | None = None

    def open(self, audit_log: Path | None, audit_key: Path | None = None) -> None:
        """Open the audit log and register the metrics. Raises GuardError."""
        if self._recorder is None:
            audit = AuditLog(audit_log, key=audit_key) if audit_log else None
            self._recorder = Recorder(_metrics(), audit)

    @property
    def recorder(self) -> Recorder:
        """What records the verdicts of this process. There must have been an `open`."""
        assert self._recorder is not None
        return self._recorder

    def __call__(self, verdict: Verdict, record_id: str) -> None:
        if self._recorder is not None:
            # vLLM has no tenants
            self._recorder.add(record_id, verdict, tenant="")

    def time_reading(self, screens: Sequence[str], tenant: str, seconds: float) -> None:
        """A `Timed` of the process's metrics."""
        if self._recorder is not None:
            self._recorder.metrics.time_reading(screens, tenant, seconds)


@cache
def process_recording() -> Recording:
    """The one recording of this process: engine and HTTP server record the same requests."""
    return Recording()


@cache
def _metrics() -> VerdictMetrics:
    # a second registration of the same names would fail
    return VerdictMetrics(REGISTRY)
