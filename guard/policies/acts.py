"""Changes of policies in the audit log: one line for each, by the server that has made it."""

from __future__ import annotations

from guard.audit import AuditLog
from guard.policies.versions import Version

EVENT = "policies"


def append_line(audit: AuditLog | None, version: Version) -> None:
    """Write the line of a change, where there is a log. Raises OSError."""
    if audit is None:
        return
    change = version.change
    audit.append_event(
        EVENT,
        act=change.act,
        policy=change.policy,
        version=str(version.number),
        by=change.by,
        why=change.why,
    )
