"""Verdicts into the audit log, the metrics, the traces and the traffic that administrators watch,
all from the same object."""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from guard.audit import AuditLog
from guard.verdict import Shadow, Verdict
from server.observe.metrics import VerdictMetrics
from server.observe.tracing import OFF, Tracing
from server.observe.traffic import Traffic
from server.services.interface import AnyRequest

logger = logging.getLogger(__name__)

Merge = Callable[[Verdict], Verdict]
"""Adds the findings of the text screens to the verdict of a row."""
_MOST_RECORDS = 4096
_PERIOD_S = 60.0
"""Between two lines of the log about audit lines that were lost."""


@dataclass(slots=True)
class _Deferred:
    """The rows of one request whose verdicts wait for the text screens.

    `merge` is None until the screens are done. `discarded`: no row of the request is recorded.
    """

    rows: list[tuple[Verdict, str]] = field(default_factory=list)
    merge: Merge | None = None
    discarded: bool = False

    @property
    def done(self) -> bool:
        return self.discarded or self.merge is not None


class Recorder:
    """The `record` callable of the services. All methods may be called from any thread."""

    def __init__(
        self,
        metrics: VerdictMetrics,
        audit: AuditLog | None,
        tracing: Tracing = OFF,
        traffic: Traffic | None = None,
    ) -> None:
        self.metrics, self.tracing, self.traffic = metrics, tracing, traffic
        self.watch: Callable[[Verdict], None] = lambda verdict: None
        """Called with each verdict that is recorded."""
        self.shadow: Callable[[Verdict], Shadow | None] = lambda verdict: None
        """Gives what the shadow of its policy says of a verdict."""
        self.audit = audit
        if audit is not None:
            audit.tell(self._lose, self._note_written)
        self._deferred: OrderedDict[str, _Deferred] = OrderedDict()
        self._lock = threading.Lock()
        self._lost = 0
        self._said_at: float | None = None

    def __call__(self, request: AnyRequest, verdict: Verdict) -> None:
        self.add(request.record_id, verdict, request.tenant)

    def add(self, record_id: str, verdict: Verdict, tenant: str) -> None:
        """Record the verdict of a row that has ended, once `record_id` is released; "" is no such
        id."""
        with self._lock:
            deferred = self._deferred.get(record_id) if record_id else None
            if deferred is not None and deferred.discarded:
                return
            if deferred is not None and deferred.merge is None:
                deferred.rows.append((verdict, tenant))
                return
            merge = deferred.merge if deferred is not None else None
        self.record(merge(verdict) if merge else verdict, tenant)

    def defer(self) -> str:
        """Hold the verdicts of a request's rows until `release`; returns its `record_id`."""
        record_id = uuid.uuid4().hex
        with self._lock:
            self._deferred[record_id] = _Deferred()
            while len(self._deferred) > _MOST_RECORDS and next(iter(self._deferred.values())).done:
                self._deferred.popitem(last=False)
        return record_id

    def release(self, record_id: str, merge: Merge) -> None:
        """Record the request's rows, each verdict through `merge`: those that have ended now,
        those that still run when they end."""
        with self._lock:
            deferred = self._deferred[record_id]
            deferred.merge, rows, deferred.rows = merge, deferred.rows, []
        for verdict, tenant in rows:
            self.record(merge(verdict), tenant)

    def discard(self, record_id: str) -> None:
        """Record none of the request's rows, as after a `record` for the whole request."""
        with self._lock:
            deferred = self._deferred[record_id]
            deferred.discarded, deferred.rows = True, []

    def record(self, verdict: Verdict, tenant: str) -> None:
        """Count the verdict of a finished request and append it to the audit log."""
        self.metrics.count(verdict, tenant)
        shadow = self.shadow(verdict)
        if shadow is not None:
            self.metrics.count_shadow(verdict, shadow["outcome"])
        self.tracing.verdict(verdict)
        self.watch(verdict)
        if self.traffic is not None:
            self.traffic.add(verdict, tenant)
        if self.audit is None:
            return
        try:
            self.audit.append(verdict, tenant=tenant, shadow=shadow)
        except OSError as error:
            # A full disk must not stop the engine; alarms can watch the counter.
            self._lose(error)
        else:
            if not self.audit.is_queued:
                self._note_written()

    def _lose(self, error: OSError) -> None:
        self.metrics.count_audit_failure()
        self._note_lost(error)

    def _note_lost(self, error: OSError) -> None:
        """Say what is lost, at the first line and then once in a period: a full disk loses all."""
        with self._lock:
            self._lost += 1
            lost, now = self._lost, time.monotonic()
            if self._said_at is not None and now - self._said_at < _PERIOD_S:
                return
            self._said_at = now
        logger.error("the audit log lost a line (%d so far): %s", lost, error)

    def _note_written(self) -> None:
        if not self._lost:
            return
        with self._lock:
            lost, self._lost, self._said_at = self._lost, 0, None
        if lost:
            logger.error("the audit log is written again; it lost %d lines", lost)
