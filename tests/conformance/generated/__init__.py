"""Requests that schemathesis generates from a server's own OpenAPI document."""
