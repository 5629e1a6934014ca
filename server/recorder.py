"""Where verdicts go: the audit log and the metrics, both from the one object."""

from __future__ import annotations

import logging

from guard.audit import AuditLog
from guard.verdict import Verdict
from server.metrics import VerdictMetrics
from server.service import AnyRequest

logger = logging.getLogger(__name__)


class Recorder:
    """The `record` callable that services are built with; may be called from any thread."""

    def __init__(self, metrics: VerdictMetrics, audit: AuditLog | None) -> None:
        self.metrics = metrics
        self.audit = audit

    def __call__(self, request: AnyRequest, verdict: Verdict) -> None:
        self.record(verdict, request.tenant)

    def record(self, verdict: Verdict, tenant: str) -> None:
        """Count the verdict of a finished request, and log it."""
        self.metrics.count(verdict)
        if self.audit is None:
            return
        try:
            self.audit.append(verdict, tenant=tenant)
        except OSError:
            # A full disk must not stop the engine; the counter is there to be alarmed on.
            self.metrics.count_audit_failure()
            logger.exception("no audit line for request %s", verdict.request_id)
