"""Generated requests to a running server, and what is wrong with its answers."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jsonschema_rs
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import FailureGroup
from schemathesis.core.transport import Response
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.conformance.generated.document import closed, narrowed
from tests.conformance.generated.served import KEY

_NEGATIVE = 0.4
"""The share of requests that the document forbids."""
_PLAIN = 0.7
"""The share of requests that name a policy in one place, and bring no images."""
_TIMEOUT_S = 60.0
_LEFT_OUT = {"create_erasure"}
"""Each one that is taken is fitted for minutes."""
_EVENTS = "text/event-stream"
_CHECKS = [
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    negative_data_rejection,
]


@dataclass
class Outcome:
    """What has come of the requests to all routes."""

    statuses: dict[str, dict[int, int]] = field(default_factory=dict)
    """How often each status came, by route."""
    faults: dict[str, str] = field(default_factory=dict)
    """One request for each kind of fault, as a command line."""
    refusals: Counter[str] = field(default_factory=Counter)
    """How often which reason was given for not taking a request that the document permits."""

    @property
    def requests(self) -> int:
        return sum(sum(counts.values()) for counts in self.statuses.values())

    def lines(self) -> list[str]:
        counted = [
            f"{route}: " + ", ".join(f"{n} of {status}" for status, n in sorted(counts.items()))
            for route, counts in self.statuses.items()
        ]
        counted += [f"refused {n}: {reason}" for reason, n in self.refusals.most_common(40)]
        return [*counted, *(f"FAULT {kind}" for kind in self.faults)]


def play(url: str, requests_in_all: int, *, number: int = 0, only: str = "") -> Outcome:
    """Send `requests_in_all` requests to the routes whose id has `only` in it, from a random
    `number` on."""
    document = closed(requests.get(f"{url}/openapi.json", timeout=_TIMEOUT_S).json())
    outcome = Outcome()
    with requests.Session() as session:
        send = partial(_send, url, session, document, outcome)
        for plain, share in ((True, _PLAIN), (False, 1 - _PLAIN)):
            schema = schemathesis.openapi.from_dict(narrowed(document, plain=plain))
            for operation, count in _shares(schema, requests_in_all * share, only):
                forbidden = round(_NEGATIVE * count) if operation.body else 0
                for mode, number_of in (
                    (GenerationMode.POSITIVE, count - forbidden),
                    (GenerationMode.NEGATIVE, forbidden),
                ):
                    if number_of:
                        strategy = operation.as_strategy(generation_mode=mode)
                        _generate(strategy, number_of, number, send)
    return outcome


def _shares(schema: Any, in_all: float, only: str) -> Iterator[tuple[Any, int]]:
    """The routes, and how many requests each gets: those with a body ten times as many."""
    found = [result.ok() for result in schema.get_all_operations()]
    chosen = [
        operation
        for operation in found
        if only in (name := operation.definition.raw["operationId"]) and name not in _LEFT_OUT
    ]
    weights = [10 if operation.body else 1 for operation in chosen]
    for operation, weight in zip(chosen, weights, strict=True):
        yield operation, max(1, round(in_all * weight / sum(weights)))


def _generate(strategy: Any, count: int, number: int, send: Callable[[Any], None]) -> None:
    # faults are collected, not raised: no request is sent again to make it smaller
    @seed(number)
    @settings(
        max_examples=count,
        phases=[Phase.generate],
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=strategy)
    def run(case: Any) -> None:
        send(case)

    run()


def _send(
    url: str,
    session: requests.Session,
    document: dict[str, Any],
    outcome: Outcome,
    case: Any,
) -> None:
    headers = {"Authorization": f"Bearer {KEY}"}
    response = case.call(base_url=url, session=session, headers=headers, timeout=_TIMEOUT_S)
    route = case.operation.label
    counts = outcome.statuses.setdefault(route, {})
    counts[response.status_code] = counts.get(response.status_code, 0) + 1
    permitted = case.meta.generation.mode is GenerationMode.POSITIVE
    if permitted and 400 <= response.status_code < 500:
        message = response.json().get("error", {}).get("message", "")
        outcome.refusals[f"{route}: {response.status_code} {message[:100]}"] += 1
    for fault in _faults(case, response, document):
        kind = fault.partition(" Value: ")[0]
        if f"{route}: {kind}" not in outcome.faults:
            how = case.as_curl_command(headers=headers)[:2000]
            outcome.faults[f"{route}: {kind}"] = how
            print(f"FAULT {route}: {fault}\n    {how}", file=sys.stderr, flush=True)


def _faults(case: Any, response: Response, document: dict[str, Any]) -> list[str]:
    checks = [*_CHECKS]
    if response.status_code != 503:  # documented: the server does not take requests now
        checks.append(not_a_server_error)
    if response.status_code == 413:  # a refusal, too, which the check does not know
        checks.remove(negative_data_rejection)
    media = response.headers.get("content-type", [""])[0].partition(";")[0]
    if media == _EVENTS:
        checks.remove(response_schema_conformance)
    try:
        case.validate_response(response, checks=checks)
    except FailureGroup as group:
        return [" ".join(f"{fault.title}: {fault.message}".split()) for fault in group.exceptions]
    if media == _EVENTS:
        return _faults_of_events(case, response.content.decode(), document)
    return []


def _faults_of_events(case: Any, text: str, document: dict[str, Any]) -> list[str]:
    """Events whose data are not in the schema of the route's events."""
    raw = case.operation.definition.raw["responses"]["200"]["content"][_EVENTS]
    schema = {**raw["x-event-schema"], "components": document["components"]}
    validator = jsonschema_rs.validator_for(schema)
    # at more characters than line feeds, as some clients do
    data = [line[6:] for line in text.splitlines() if line.startswith("data: ")]
    found = []
    for event in data:
        if event != "[DONE]" and not validator.is_valid(json.loads(event)):
            found.append(f"an event is not in the schema: {event[:400]}")
    return found[:1]
