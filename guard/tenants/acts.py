"""Changes of tenants in the audit log: one line for each, with whoever made it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Literal

from guard.audit import AuditLog
from guard.errors import GuardError
from guard.tenants.levels import Level, kind_of

logger = logging.getLogger(__name__)

Act = Literal["new", "set", "rotate", "revoke"]
Note = Callable[[Act, Level, str], None]
"""Takes a change that has been made, the level as it is now, and who made it."""
EVENT = "tenants"


def noting(audit: AuditLog | None, failed: Callable[[], None] | None = None) -> Note:
    """What writes the lines into `audit`; nothing where there is no log.

    A line that cannot be written is logged and `failed` is called; without that, GuardError is
    raised. The change has been made all the same.
    """

    def note(act: Act, level: Level, by: str) -> None:
        if audit is None:
            return
        try:
            audit.append_event(EVENT, act=act, kind=kind_of(level), id=level.id, by=by)
        except OSError as error:
            message = f"the change was made, but the audit log lacks its line: {error}"
            if failed is None:
                raise GuardError(message) from error
            logger.error("%s", message)
            failed()

    return note
