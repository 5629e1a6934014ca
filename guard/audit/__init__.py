"""The audit log: written, chained and signed, checked, exported, and personal fields erased."""

from guard.audit.log import AuditLog

__all__ = ["AuditLog"]
