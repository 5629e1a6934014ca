"""The document says what the routes do."""

from __future__ import annotations

import json
import re
from typing import Any

import httpx
import pytest

from server.openapi.operation import STATUSES, operation_of
from server.openapi.schemas import schemas_of
from server.wire.schemas.answers.chat import ChatCompletion
from server.wire.schemas.base import parse_request
from server.wire.schemas.text import ChatRequest, CompletionRequest
from tests.server.live_server import LiveServer, key, live_server, settings


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    with live_server() as live:
        found: dict[str, Any] = httpx.get(f"{live.url}/openapi.json").json()
        return found


def operations(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {
        f"{method} {path}": operation
        for path, members in document["paths"].items()
        for method, operation in members.items()
    }


def test_every_route_says_what_it_does(live: LiveServer) -> None:
    app: Any = live.server.config.app
    routes = [route for each in app.routes for route in each.original_router.routes]
    assert len(routes) > 10
    silent = {route.path for route in routes if operation_of(route) is None}
    assert silent == {"/openapi.json", "/docs", "/console", "/console/{file:path}"}


def test_every_reference_is_resolved(document: dict[str, Any]) -> None:
    names = set(re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(document)))
    assert names <= document["components"]["schemas"].keys()
    assert {"ChatRequest", "ChatCompletion", "Verdict", "AnthropicError"} <= names


def test_every_operation_has_answers_and_errors(document: dict[str, Any]) -> None:
    ids = [operation["operationId"] for operation in operations(document).values()]
    assert len(ids) == len(set(ids))
    for name, operation in operations(document).items():
        assert operation["summary"], name
        assert operation["responses"]["200"]["content"], name
        errors = {int(status) for status in operation["responses"]} - {200}
        assert errors <= STATUSES.keys(), name
        assert bool("requestBody" in operation) == (400 in errors), name


def test_errors_have_the_shape_of_their_api(document: dict[str, Any]) -> None:
    def shapes(name: str, status: str) -> set[str]:
        error = operations(document)[name]["responses"][status]["content"]["application/json"]
        return set(re.findall(r"/(\w+Error)\"", json.dumps(error)))

    assert shapes("post /v1/chat/completions", "400") == {"OpenAIError"}
    assert shapes("post /v1/messages", "400") == {"AnthropicError"}
    assert shapes("get /v1/models", "500") == {"OpenAIError", "AnthropicError"}


def test_an_open_server_asks_for_no_key_and_one_with_keys_does(document: dict[str, Any]) -> None:
    assert not [name for name, op in operations(document).items() if "security" in op]
    raw = settings()
    raw["keys"] = [key("alpha")]
    with live_server(raw) as live:
        keyed = operations(httpx.get(f"{live.url}/openapi.json").json())
    assert [name for name, op in keyed.items() if "security" not in op] == [
        "get /health",
        "get /ready",
        "get /metrics",
    ]


def test_the_document_names_nothing_of_the_configuration() -> None:
    raw = settings()
    raw["policies"]["of-the-secret-service"] = {"guards": []}
    with live_server(raw) as live:
        for path in ("/openapi.json", "/docs"):
            assert "of-the-secret-service" not in httpx.get(f"{live.url}{path}").text


@pytest.mark.parametrize(
    ("value", "taken"),
    [
        ({"temperature": None, "n": None}, True),
        ({"frequency_penalty": 0, "logit_bias": {}}, True),
        ({"max_tokens": 8.0, "seed": -3.0}, True),
        ({"max_tokens": 0}, False),
        ({"invented": 1}, False),
        ({"stop": "\n"}, True),
        ({"stop": ""}, False),
        ({"stop": ["a"] * 5}, False),
    ],
)
def test_bodies_are_taken_where_the_schema_permits_them(value: dict[str, Any], taken: bool) -> None:
    import jsonschema_rs

    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], **value}
    _, components = schemas_of([ChatRequest], [])
    schema = {
        "$ref": "#/components/schemas/ChatRequest",
        "components": {"schemas": components},
    }
    assert jsonschema_rs.validator_for(schema).is_valid(body) is taken
    if taken:
        assert parse_request(ChatRequest, body).model == "m"
    else:
        with pytest.raises(Exception, match=next(iter(value))):
            parse_request(ChatRequest, body)


def test_numbers_without_a_fraction_are_integers() -> None:
    body = {"model": "m", "prompt": "hi", "max_tokens": 3.0, "temperature": 1.0}
    parsed = parse_request(CompletionRequest, body)
    assert (parsed.max_tokens, type(parsed.max_tokens), parsed.temperature) == (3, int, 1)
    with pytest.raises(Exception, match="max_tokens"):
        parse_request(CompletionRequest, body | {"max_tokens": 3.5})


def test_members_that_may_be_missing_are_not_required() -> None:
    found, components = schemas_of([], [ChatCompletion])
    chat = components[found[ChatCompletion]["$ref"].rpartition("/")[2]]
    assert "usage" in chat["required"] and "guard" not in chat["required"]
    assert set(components["Verdict"]["required"]) == components["Verdict"]["properties"].keys()
