"""Observability: metrics, verdict records, request ids, log rotation."""
