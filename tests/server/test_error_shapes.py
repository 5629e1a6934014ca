"""The shape of an error, by the API that was called."""

from __future__ import annotations

import pytest

from server.error_shapes import (
    ANTHROPIC,
    OPENAI,
    RESPONSES,
    ErrorFields,
    ErrorShape,
    SentStream,
    shape_of,
)

ERROR = ErrorFields(502, "It broke.", "server_error", "upstream_failed")


@pytest.mark.parametrize(
    ("path", "shape"),
    [
        ("/v1/messages", ANTHROPIC),
        ("/v1/messages/", ANTHROPIC),
        ("/v1/messages/count_tokens", ANTHROPIC),
        ("/v1/messages/batches/7", ANTHROPIC),
        ("/messages", ANTHROPIC),
        ("/v1/messages2", OPENAI),
        ("/v1/responses", RESPONSES),
        ("/v1/responses/r1/cancel", RESPONSES),
        ("/v1/chat/completions", OPENAI),
        ("/v1/models", OPENAI),
        ("/other", OPENAI),
    ],
)
def test_the_route_decides(path: str, shape: ErrorShape) -> None:
    assert shape_of(path) is shape


@pytest.mark.parametrize(
    ("path", "shape"),
    [("/v1/models", ANTHROPIC), ("/other", ANTHROPIC), ("/v1/chat/completions", OPENAI)],
)
def test_where_it_does_not_the_header_of_anthropics_clients_does(
    path: str, shape: ErrorShape
) -> None:
    assert shape_of(path, {"anthropic-version"}) is shape


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (402, "billing_error"),
        (403, "permission_error"),
        (404, "not_found_error"),
        (413, "request_too_large"),
        (415, "invalid_request_error"),
        (429, "rate_limit_error"),
        (500, "api_error"),
        (502, "api_error"),
        (503, "overloaded_error"),
        (504, "timeout_error"),
        (529, "overloaded_error"),
    ],
)
def test_anthropics_types_follow_the_status(status: int, kind: str) -> None:
    openais = "invalid_request_error" if status < 500 else "server_error"
    body = ANTHROPIC.body(ErrorFields(status, "No.", openais), "req-1")
    assert body == {
        "type": "error",
        "error": {"type": kind, "message": "No."},
        "request_id": "req-1",
    }


def test_a_type_that_is_anthropics_already_stays() -> None:
    body = ANTHROPIC.body(ErrorFields(500, "Busy.", "overloaded_error"), "req-1")
    assert body["error"]["type"] == "overloaded_error"


def test_openais_envelope() -> None:
    error = {
        "message": "It broke.",
        "type": "server_error",
        "param": None,
        "code": "upstream_failed",
    }
    assert OPENAI.body(ERROR, "req-1") == RESPONSES.body(ERROR, "req-1") == {"error": error}
    assert OPENAI.event(ERROR, "req-1", SentStream()) == ("", {"error": error})


def test_a_stream_of_messages_ends_with_the_event_error() -> None:
    name, event = ANTHROPIC.event(ERROR, "req-1", SentStream())
    assert (name, event["type"], event["error"]["type"]) == ("error", "error", "api_error")


def test_a_stream_of_responses_ends_with_the_response_that_failed() -> None:
    response = {"id": "r", "object": "response", "status": "in_progress", "output": []}
    name, event = RESPONSES.event(ERROR, "req-1", SentStream(response, 6))
    error = {"code": "upstream_failed", "message": "It broke."}
    assert name == event["type"] == "response.failed"
    assert event["sequence_number"] == 7
    assert event["response"] == {**response, "status": "failed", "error": error}


def test_a_stream_of_responses_that_has_not_begun_ends_with_an_error() -> None:
    assert RESPONSES.event(ERROR, "req-1", SentStream()) == (
        "error",
        {
            "type": "error",
            "code": "upstream_failed",
            "message": "It broke.",
            "param": None,
            "sequence_number": 0,
        },
    )
