"""Texts of requests and responses: scored, read together, redacted and restored."""
