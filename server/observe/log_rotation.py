"""Going on in a new audit log when the old one has been moved away."""

from __future__ import annotations

import logging

from guard.audit import AuditLog
from guard.errors import GuardError

logger = logging.getLogger(__name__)


def rotate(audit: AuditLog) -> None:
    """Reopen the log; where that fails it goes on in its old file."""
    try:
        audit.reopen()
    except GuardError:
        logger.exception("the audit log goes on in its old file")
