"""Errors of the HTTP layer, and the responses for them and for `guard.errors`."""

from __future__ import annotations

import math
from functools import partial
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

from guard.errors import (
    BudgetExhausted,
    ContentBlocked,
    GuardError,
    GuardFailed,
    RequestError,
    TooManyRequests,
    Unauthorized,
)
from guard.verdict import Verdict
from server.edge.paths import KnownPaths
from server.error_shapes import ANTHROPIC, OPENAI, ErrorFields, SentStream
from server.observe.exchange import Exchange, exchange_of
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


class NoTools(RequestError):
    """A request has tools, or their results, for a model that knows none."""

    code = "tools_not_supported"


class UnknownResponse(RequestError):
    """The response that a request is to go on from is not kept here, or not for this request."""

    code = "previous_response_not_found"


class TooComplex(RequestError):
    """The form that the answer must have is beyond what a step of the engine may cost."""

    code = "constraint_too_complex"


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


def error_fields(error: GuardError, exchange: Exchange | None = None) -> ErrorFields:
    """What the client is told of an error: what a policy says in place of its own words, and the
    names of guards only where `exchange.detail` lets the client know them."""
    message = error.message
    if exchange is not None and isinstance(error, ContentBlocked) and exchange.message is not None:
        message = exchange.message
    elif exchange is not None and exchange.detail != "full":
        if isinstance(error, ContentBlocked):
            message = "The policy of this request does not let it pass."
        elif type(error) is GuardFailed:
            message = "The policy of this request could not be applied."
        elif exchange.detail == "none" and exchange.policy is not None:
            message = message.replace(f"the policy {exchange.policy!r}", "the policy")
            message = message.replace(f"The policy {exchange.policy!r}", "The policy")
    return ErrorFields(error.status, message, error.type, error.code, error.param)


def error_body(error: GuardError, exchange: Exchange | None = None) -> dict[str, Any]:
    """The body of the response, with the verdict as `guard` beside the error; `exchange` None is
    OpenAI's shape."""
    shape = exchange.error_shape if exchange is not None else OPENAI
    request_id = exchange.request_id if exchange is not None else ""
    return shape.body(error_fields(error, exchange), request_id) | _guard(error, exchange)


def error_event(
    error: GuardError, exchange: Exchange | None = None, sent: SentStream | None = None
) -> tuple[str, dict[str, Any]]:
    """The name and the data of the event that ends a stream of which `sent` has left."""
    shape = exchange.error_shape if exchange is not None else OPENAI
    request_id = exchange.request_id if exchange is not None else ""
    fields = error_fields(error, exchange)
    name, event = shape.event(fields, request_id, sent or SentStream())
    return name, event | _guard(error, exchange)


def _guard(error: GuardError, exchange: Exchange | None) -> dict[str, Any]:
    verdict = verdict_of(error)
    if verdict is None:
        return {}
    return exchange.guard(verdict) if exchange is not None else {"guard": verdict.as_dict()}


def internal_error() -> GuardError:
    """The error for unforeseen faults: no detail reaches the client, the log has it."""
    return GuardError("The server failed on this request; its log has the reason.")


def error_response(error: GuardError, exchange: Exchange | None = None) -> Response:
    """The HTTP response for `error`, with the headers that its status requires; `exchange` None is
    OpenAI's shape."""
    headers: dict[str, str] = {}
    if isinstance(error, TooManyRequests | Overloaded):
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after)))
    if isinstance(error, BudgetExhausted):
        headers["X-Should-Retry"] = "false"  # clients of OpenAI and Anthropic would, in vain
    if isinstance(error, Unauthorized):
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, BodyTooLarge):
        headers["Connection"] = "close"  # the server does not read the rest of the body
    if exchange is not None and exchange.error_shape is ANTHROPIC:
        headers["request-id"] = exchange.request_id  # by which Anthropic's clients quote it
    return JSONReply(error_body(error, exchange), status_code=error.status, headers=headers)


async def _on_guard_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, GuardError)
    exchange = exchange_of(request)
    if verdict := verdict_of(error):
        exchange.outcome = verdict.outcome
    return error_response(error, exchange)


async def _on_http_exception(request: Request, error: Exception, paths: KnownPaths) -> Response:
    assert isinstance(error, HTTPException)
    exchange = exchange_of(request)
    where = f"{request.method} {request.url.path[:200]}"
    refusal: RequestError
    if error.status_code == HTTPStatus.NOT_FOUND:
        meant = paths.meant_by(request.method, request.url.path)
        hint = f": it is {meant[:200]} here. Clients' base URL ends in /v1." if meant else "."
        refusal = UnknownRoute(f"Unknown URL ({where}){hint}")
    elif error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        refusal = MethodNotAllowed(f"This URL does not take that method ({where}).")
    else:
        body = error_body(RequestError(str(error.detail)), exchange)
        return JSONReply(body, status_code=error.status_code)
    response = error_response(refusal, exchange)
    response.headers.update(error.headers or {})
    return response


def install_error_handlers(app: FastAPI, paths: KnownPaths) -> None:
    """Make `app`, which answers `paths`, answer GuardErrors and unknown routes as the API that was
    called does."""
    app.add_exception_handler(GuardError, _on_guard_error)
    app.add_exception_handler(HTTPException, partial(_on_http_exception, paths=paths))
