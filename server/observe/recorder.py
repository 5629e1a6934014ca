"""Where verdicts go: the audit log and the metrics, both from the one object."""

from __future__ import annotations

import logging
import threading
import uuid
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from guard.audit import AuditLog
from guard.verdict import Verdict
from server.observe.metrics import VerdictMetrics
from server.services.interface import AnyRequest

logger = logging.getLogger(__name__)

Join = Callable[[Verdict], Verdict]
"""Adds to the verdict of a row what others have seen of its request."""
_REMEMBERED = 4096


@dataclass(slots=True)
class _Joined:
    """`join` is None while it is not known; `over`: nothing more is recorded of the request."""

    rows: list[tuple[Verdict, str]] = field(default_factory=list)
    join: Join | None = None
    over: bool = False

    @property
    def done(self) -> bool:
        return self.over or self.join is not None


class Recorder:
    """The `record` callable that services are built with; may be called from any thread."""

    def __init__(self, metrics: VerdictMetrics, audit: AuditLog | None) -> None:
        self.metrics = metrics
        self.audit = audit
        self._joined: OrderedDict[str, _Joined] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, request: AnyRequest, verdict: Verdict) -> None:
        with self._lock:
            joined = self._joined.get(request.joined) if request.joined else None
            if joined is not None and joined.over:
                return
            if joined is not None and joined.join is None:
                joined.rows.append((verdict, request.tenant))
                return
            join = joined.join if joined is not None else None
        self.record(join(verdict) if join else verdict, request.tenant)

    def begin(self) -> str:
        """The rows of a request wait: others look at its answer too. What they are known by."""
        name = uuid.uuid4().hex
        with self._lock:
            self._joined[name] = _Joined()
            while len(self._joined) > _REMEMBERED and next(iter(self._joined.values())).done:
                self._joined.popitem(last=False)
        return name

    def end(self, name: str, join: Join) -> None:
        """They have looked: rows that have waited are recorded, those that still run will be."""
        with self._lock:
            joined = self._joined[name]
            joined.join, rows, joined.rows = join, joined.rows, []
        for verdict, tenant in rows:
            self.record(join(verdict), tenant)

    def drop(self, name: str) -> None:
        """The request has been recorded as a whole: its rows are not."""
        with self._lock:
            joined = self._joined[name]
            joined.over, joined.rows = True, []

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
