"""Errors of the HTTP layer, and OpenAI's error envelope for them and for `guard.errors`."""

from __future__ import annotations

import math
from functools import partial
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

from guard.errors import (
    ContentBlocked,
    GuardError,
    GuardFailed,
    RequestError,
    TooManyRequests,
    Unauthorized,
)
from guard.verdict import Verdict
from server.edge.paths import KnownPaths
from server.observe.exchange import exchange_of
from server.wire.replies import JSONReply


class InvalidJSON(RequestError):
    """The body is not one JSON object in UTF-8."""

    code = "invalid_json"


class InvalidEncoding(RequestError):
    """The body is not in the encoding that `Content-Encoding` names."""

    code = "invalid_encoding"


class InvalidForm(RequestError):
    """The body is not one form of multipart/form-data."""

    code = "invalid_form"


class InvalidParameter(RequestError):
    code = "invalid_parameter"


class MissingParameter(RequestError):
    code = "missing_required_parameter"


class UnknownParameter(RequestError):
    code = "unknown_parameter"


class UnsupportedParameter(RequestError):
    """A parameter of OpenAI's schema that this server accepts with its default value only."""

    code = "unsupported_parameter"


class BodyTooLarge(RequestError):
    status = 413
    code = "request_too_large"


class TooManyValues(RequestError):
    """A body has more members and items than this server reads."""

    status = 413
    code = "too_many_values"


class UnsupportedMedia(RequestError):
    status = 415
    code = "unsupported_media_type"


class ClientGone(RequestError):
    """The client has disconnected and reads no answer; the metrics count the request as 499."""

    status = 499
    code = "client_closed_request"


class RequestTimeout(GuardError):
    """The request took longer than `server.request_timeout_s`."""

    status = 504
    code = "request_timeout"


class SlowRequest(RequestError):
    """The client sent its request too slowly."""

    status = 408
    code = "request_timeout"


class EngineFailed(GuardFailed):
    """The engine failed on a batch: its rows end with this error, the service goes on."""

    code = "engine_failed"


class Overloaded(GuardError):
    """No upstream can take the request now; `retry_after` is in seconds."""

    status = 503
    code = "service_unavailable"

    def __init__(self, message: str, *, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class WrongEndpoint(RequestError):
    """The model is served, but does not generate what this URL returns."""

    status = 404
    code = "model_not_supported"


class ImageBlocked(ContentBlocked):
    code = "content_policy_violation"


class UnknownRoute(RequestError):
    status = 404
    code = "unknown_url"


class MethodNotAllowed(RequestError):
    status = 405
    code = "method_not_allowed"


def verdict_of(error: GuardError) -> Verdict | None:
    """The verdict that an error carries, None where its row has none."""
    return error.verdict if isinstance(error, ContentBlocked | GuardFailed) else None


def envelope(error: GuardError) -> dict[str, Any]:
    """`{"error": {message, type, param, code}}`, with the verdict as `guard` beside it."""
    body: dict[str, Any] = {
        "error": {
            "message": error.message,
            "type": error.type,
            "param": error.param,
            "code": error.code,
        }
    }
    if verdict := verdict_of(error):
        body["guard"] = verdict.as_dict()
    return body


def internal_error() -> GuardError:
    """The error for unforeseen faults: no detail reaches the client, the log has it."""
    return GuardError("The server failed on this request; its log has the reason.")


def error_response(error: GuardError) -> Response:
    """The HTTP response for `error`, with the headers that its status requires."""
    headers: dict[str, str] = {}
    if isinstance(error, TooManyRequests | Overloaded):
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after)))
    if isinstance(error, Unauthorized):
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, BodyTooLarge):
        headers["Connection"] = "close"  # the server does not read the rest of the body
    return JSONReply(envelope(error), status_code=error.status, headers=headers)


async def _on_guard_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, GuardError)
    if verdict := verdict_of(error):
        exchange_of(request).outcome = verdict.outcome
    return error_response(error)


async def _on_http_exception(request: Request, error: Exception, paths: KnownPaths) -> Response:
    assert isinstance(error, HTTPException)
    where = f"{request.method} {request.url.path[:200]}"
    refusal: RequestError
    if error.status_code == HTTPStatus.NOT_FOUND:
        meant = paths.meant_by(request.method, request.url.path)
        hint = f": it is {meant[:200]} here. Clients' base URL ends in /v1." if meant else "."
        refusal = UnknownRoute(f"Unknown URL ({where}){hint}")
    elif error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        refusal = MethodNotAllowed(f"This URL does not take that method ({where}).")
    else:
        return JSONReply(envelope(RequestError(str(error.detail))), status_code=error.status_code)
    response = error_response(refusal)
    response.headers.update(error.headers or {})
    return response


def install_error_handlers(app: FastAPI, paths: KnownPaths) -> None:
    """Make `app`, which answers `paths`, answer GuardErrors and unknown routes in OpenAI's
    envelope."""
    app.add_exception_handler(GuardError, _on_guard_error)
    app.add_exception_handler(HTTPException, partial(_on_http_exception, paths=paths))
