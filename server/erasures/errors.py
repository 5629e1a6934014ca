"""Errors of requests about erasures."""

from __future__ import annotations

from guard.errors import RequestError


class UnknownErasure(RequestError):
    status = 404
    code = "erasure_not_found"


class Conflict(RequestError):
    """The erasure is in a state in which this cannot be asked for."""

    status = 409
    code = "invalid_state"
