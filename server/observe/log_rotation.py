"""Reopening the audit log after its file was moved away."""

from __future__ import annotations

import logging

from guard.audit import AuditLog
from guard.errors import GuardError

logger = logging.getLogger(__name__)


def rotate(audit: AuditLog) -> None:
    """Reopen the log. Where that fails, the error is logged and the old file stays open."""
    try:
        audit.reopen()
    except GuardError:
        logger.exception("the audit log could not be reopened: it goes on in its old file")
