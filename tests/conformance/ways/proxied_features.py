"""What is tried with each client through the proxy, and what is right."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from tests.conformance.feature import Feature, both
from tests.conformance.seen import ENDS, Seen, Wrong, expect
from tests.conformance.upstream.answers import (
    ADDRESS,
    CARD,
    GREETING,
    SECRET,
    TOKENS_IN,
    TOKENS_OUT,
    blocked_text,
    contact,
    mail_arguments,
    sentence,
)
from tests.conformance.upstream.stub import ERRORS, MODEL, RETRY_AFTER, VECTOR, Stub, dumped

HELLO = "Say hello."
PERSONAL = f"Write to {ADDRESS}\nthat her card {CARD} is charged. Copy: {ADDRESS}"
LEAK = f"Deploy with the key {SECRET} today."
_HANG_UP_S = 5.0


@dataclass(frozen=True)
class Through(Seen):
    """What the upstream behind the proxy has seen, too."""

    stub: Stub


def greeted(seen: Through) -> None:
    expect("text", seen.answer["text"], GREETING)
    _check_end(seen)


def repeated(seen: Through) -> None:
    expect("text", seen.answer["text"], sentence(ADDRESS, CARD))
    _check_upstream(seen)
    _check_end(seen)


def called(seen: Through) -> None:
    expect("name", seen.answer["name"], "send_mail")
    expect("arguments", seen.answer["arguments"], mail_arguments(ADDRESS, CARD))
    _check_upstream(seen)


def looped(seen: Through) -> None:
    expect("text", seen.answer["text"], sentence(ADDRESS, CARD))
    expect("requests", len(seen.stub.requests), 2)
    _check_upstream(seen)
    for request in seen.stub.requests:
        for text in _json_texts(request.json):
            try:
                json.loads(text)
            except ValueError:
                raise Wrong(f"the upstream got broken JSON: {text}") from None


def structured(seen: Through) -> None:
    expect("object", seen.answer["object"], contact(ADDRESS, CARD))
    _check_upstream(seen)


def embedded(seen: Through) -> None:
    expect("vector", seen.answer["vector"], VECTOR)
    _check_upstream(seen)


def listed(seen: Through) -> None:
    expect("names", seen.answer["names"], [MODEL])


def hung_up(seen: Through) -> None:
    if not seen.answer["text"]:
        raise Wrong("no text came before the client hung up")
    _check_hung_up(seen)


def timed_out(seen: Through) -> None:
    seen.require_class(seen.client.timeout)
    _check_hung_up(seen)


def failed(status: int) -> Callable[[Through], None]:
    """The upstream's error, as the client's own exception."""

    def check(seen: Through) -> None:
        (kind, code), anthropic, message = ERRORS[status]
        told = {"type": anthropic if seen.client.api == "messages" else kind, "code": code}
        if seen.client.api == "messages":
            del told["code"]
        seen.require_class(seen.client.errors[status])
        seen.require_told(status_code=status, **told)
        if status == 429:
            seen.require_told(retry_after=RETRY_AFTER)
        _check_message(seen, message)

    return check


def broken(seen: Through) -> None:
    if "ErrorEvent" not in seen.error["classes"]:
        seen.require_class(seen.client.broken)
    _check_message(seen, ERRORS[500][2])


def unauthorized(seen: Through) -> None:
    seen.require_unauthorized()
    expect("requests", len(seen.stub.requests), 0)


def refused(seen: Through) -> None:
    if not seen.private:
        if seen.client.probe == "text":
            expect("text", seen.answer["text"], GREETING)
        return
    seen.require_refused()
    expect("requests", len(seen.stub.requests), 0)


def blocked(seen: Through) -> None:
    if not seen.private:
        if seen.client.probe == "text":
            expect("text", seen.answer["text"], blocked_text())
        return
    seen.require_filtered()


def _check_upstream(seen: Through) -> None:
    """What the policy redacts did not reach the upstream; what it does not, did."""
    received = dumped(seen.stub.requests)
    if not received:
        raise Wrong("the upstream received nothing")
    for value in (ADDRESS, CARD):
        if seen.private and value in received:
            raise Wrong(f"the upstream received {value}")
        if not seen.private and value not in received:
            raise Wrong(f"the upstream did not receive {value}")


def _check_end(seen: Through) -> None:
    finish, tokens = seen.result.get("finish"), seen.result.get("tokens", "not told")
    if finish is not None and finish not in ENDS:
        raise Wrong(f"the end is {finish!r}")
    if tokens != "not told":
        expect("tokens", tokens, TOKENS_IN + TOKENS_OUT)


def _check_hung_up(seen: Through) -> None:
    if not seen.stub.hung_up.wait(_HANG_UP_S):
        raise Wrong(f"{_HANG_UP_S:.0f} s after the client hung up the upstream is still connected")


def _check_message(seen: Through, right: str) -> None:
    if right not in seen.error["message"]:
        raise Wrong(f"the message is not the upstream's: {seen.error['message'][:200]}")


def _json_texts(value: Any) -> Iterator[str]:
    """The arguments of calls, which are JSON in strings."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key == "arguments" and isinstance(inner, str):
                yield inner
            else:
                yield from _json_texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _json_texts(inner)


FEATURES: tuple[Feature, ...] = (
    *both("text", "text", "greet", HELLO, greeted),
    *both("personal data", "text", "repeat", PERSONAL, repeated),
    *both("tool call", "tool", "call", PERSONAL, called),
    *both("tool result", "loop", "call", PERSONAL, looped),
    *both("structured output", "object", "object", PERSONAL, structured),
    *both("refused request", "", "greet", LEAK, refused),
    *both("blocked answer", "", "secret", HELLO, blocked),
    *both("error 400", "", "400", HELLO, failed(400)),
    *both("error 429", "", "429", HELLO, failed(429)),
    *both("error 500", "", "500", HELLO, failed(500)),
    Feature("error in a stream", "", "broken", HELLO, broken, stream=True),
    *both("wrong key", "", "greet", HELLO, unauthorized, key="nobody's key"),
    Feature("hang up, streamed", "hang_up", "endless", HELLO, hung_up, stream=True),
    *both("time-out", "", "silent", HELLO, timed_out, timeout=0.7),
    Feature("embeddings", "embed", "greet", PERSONAL, embedded),
    Feature("list of models", "models", "greet", HELLO, listed),
)
