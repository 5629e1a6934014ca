"""A short run of generated requests; `python -m tests.conformance.generated` plays 10,000."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.conformance.generated.document import closed, narrowed
from tests.conformance.generated.run import _faults_of_events, play
from tests.conformance.generated.served import tiny_server
from tests.server.live_server import live_server

DOCUMENT: dict[str, Any] = {
    "paths": {
        "/x": {
            "post": {
                "responses": {"200": {"$ref": "#/components/schemas/Answer"}},
                "requestBody": {"$ref": "#/components/schemas/Asked"},
            }
        }
    },
    "components": {
        "schemas": {
            "Answer": {"properties": {"inner": {"$ref": "#/components/schemas/Inner"}}},
            "Inner": {"properties": {"number": {"type": "integer"}}},
            "Asked": {"properties": {}},
        }
    },
}


def test_answers_are_as_the_document_says(tmp_path: Path) -> None:
    with tiny_server(tmp_path) as url:
        outcome = play(url, 200)
    assert not outcome.faults, "\n".join(outcome.lines())
    assert outcome.requests > 180
    answered = {route for route, counts in outcome.statuses.items() if counts.get(200)}
    asking = {route for route in answered if route.startswith("POST /v1/")}
    assert len(asking) >= 4, "most requests are wrong, but not all to most routes"
    assert "Traceback" not in (tmp_path / "server.log").read_text()


def test_answers_with_other_members_or_statuses_are_faults(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A document that says less than the server does: each of its faults is found."""
    from server.endpoints import probes

    wrong = replace(probes._HEALTH, answers={"application/json": dict[str, int]})
    monkeypatch.setattr(probes, "_HEALTH", wrong)
    with live_server() as live:
        outcome = play(live.url, 2, only="health")
    (kind,) = outcome.faults
    assert re.search(r"GET /health: .*ok", kind)


def test_only_answers_are_closed() -> None:
    schemas = closed(DOCUMENT)["components"]["schemas"]
    assert [name for name, schema in schemas.items() if "additionalProperties" in schema] == [
        "Answer",
        "Inner",
    ]
    assert narrowed(DOCUMENT, plain=True)["paths"].keys() == {"/x"}


def test_an_event_that_is_not_in_the_schema_is_a_fault() -> None:
    schema = {"anyOf": [{"$ref": "#/components/schemas/Inner"}]}
    content = {"text/event-stream": {"x-event-schema": schema}}
    raw = {"responses": {"200": {"content": content}}}
    case = SimpleNamespace(operation=SimpleNamespace(definition=SimpleNamespace(raw=raw)))
    good, bad = 'data: {"number": 1}\n\ndata: [DONE]\n\n', 'data: {"number": "1"}\n\n'
    document = closed(DOCUMENT)
    assert _faults_of_events(case, good, document) == []
    assert len(_faults_of_events(case, good + bad, document)) == 1
    assert len(_faults_of_events(case, 'data: {"more": 1}\n\n', document)) == 1
