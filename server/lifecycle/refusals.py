"""Errors of connections on which no request could be read."""

from __future__ import annotations

from guard.errors import RequestError


class InvalidRequest(RequestError):
    """What came is not HTTP."""

    code = "invalid_http"

    def __init__(self) -> None:
        super().__init__("This is not a valid HTTP request.")


class HeadTooLarge(RequestError):
    """The head of a request is longer than the server reads."""

    status = 431
    code = "headers_too_large"

    def __init__(self, head_bytes: int, headers: int) -> None:
        super().__init__(
            f"The head of a request has at most {headers} headers and {head_bytes} bytes; send "
            "fewer or shorter headers."
        )


class HeadTooSlow(RequestError):
    """The head of a request did not come in time."""

    status = 408
    code = "request_timeout"

    def __init__(self) -> None:
        super().__init__("The head of the request came too slowly.")
