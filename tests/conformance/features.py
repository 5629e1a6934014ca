"""What is tried with each client, and what is right."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from tests.conformance.clients import Client
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
NONE, PRIVATE = "none", "private"

_ENDS = {"stop", "completed", "end_turn"}
_FILTERED = {"content_filter", "content-filter", "refusal"}
_HANG_UP_S = 5.0


class Wrong(Exception):
    """A client did not get what is right; the text says what it got."""


@dataclass(frozen=True)
class Seen:
    """What a client and the upstream have seen of one request."""

    client: Client
    policy: str
    result: dict[str, Any]
    stub: Stub

    @property
    def private(self) -> bool:
        return self.policy == PRIVATE

    @property
    def answer(self) -> dict[str, Any]:
        """The result, which is no error."""
        if error := self.result.get("error"):
            raise Wrong(f"{error['classes'][0]}: {error['message'][:300]}")
        return self.result

    @property
    def error(self) -> dict[str, Any]:
        """The exception, which there is."""
        if "error" not in self.result:
            raise Wrong(f"no exception, but {self.result}")
        return self.result["error"]


@dataclass(frozen=True)
class Feature:
    """One thing that is tried; `do` is what the driver does, empty for the client's probe."""

    name: str
    do: str
    script: str
    prompt: str
    check: Callable[[Seen], None]
    stream: bool = False
    key: str = ""
    """In place of the key whose default is the policy."""
    timeout: float = 20.0


def expect(what: str, got: object, right: object) -> None:
    if got != right:
        raise Wrong(f"{what} is {got!r}, not {right!r}")


def greeted(seen: Seen) -> None:
    expect("text", seen.answer["text"], GREETING)
    _check_end(seen)


def repeated(seen: Seen) -> None:
    expect("text", seen.answer["text"], sentence(ADDRESS, CARD))
    _check_upstream(seen)
    _check_end(seen)


def called(seen: Seen) -> None:
    expect("name", seen.answer["name"], "send_mail")
    expect("arguments", seen.answer["arguments"], mail_arguments(ADDRESS, CARD))
    _check_upstream(seen)


def looped(seen: Seen) -> None:
    expect("text", seen.answer["text"], sentence(ADDRESS, CARD))
    expect("requests", len(seen.stub.requests), 2)
    _check_upstream(seen)
    for request in seen.stub.requests:
        for text in _json_texts(request.json):
            try:
                json.loads(text)
            except ValueError:
                raise Wrong(f"the upstream got broken JSON: {text}") from None


def structured(seen: Seen) -> None:
    expect("object", seen.answer["object"], contact(ADDRESS, CARD))
    _check_upstream(seen)


def embedded(seen: Seen) -> None:
    expect("vector", seen.answer["vector"], VECTOR)
    _check_upstream(seen)


def listed(seen: Seen) -> None:
    expect("names", seen.answer["names"], [MODEL])


def hung_up(seen: Seen) -> None:
    if not seen.answer["text"]:
        raise Wrong("no text came before the client hung up")
    _check_hung_up(seen)


def timed_out(seen: Seen) -> None:
    _check_class(seen, seen.client.timeout)
    _check_hung_up(seen)


def failed(status: int) -> Callable[[Seen], None]:
    """The upstream's error, as the client's own exception."""

    def check(seen: Seen) -> None:
        (kind, code), anthropic, message = ERRORS[status]
        told = {"type": anthropic if seen.client.api == "messages" else kind, "code": code}
        if seen.client.api == "messages":
            del told["code"]
        _check_class(seen, seen.client.errors[status])
        _check_told(seen, status_code=status, **told)
        if status == 429:
            _check_told(seen, retry_after=RETRY_AFTER)
        _check_message(seen, message)

    return check


def broken(seen: Seen) -> None:
    if "ErrorEvent" not in seen.error["classes"]:
        _check_class(seen, seen.client.broken)
    _check_message(seen, ERRORS[500][2])


def unauthorized(seen: Seen) -> None:
    _check_class(seen, seen.client.errors[401])
    messages = seen.client.api == "messages"
    right = {"type": "authentication_error"} if messages else {"code": "invalid_api_key"}
    _check_told(seen, status_code=401, **right)
    expect("requests", len(seen.stub.requests), 0)


def refused(seen: Seen) -> None:
    if not seen.private:
        if seen.client.probe == "text":
            expect("text", seen.answer["text"], GREETING)
        return
    _check_class(seen, seen.client.errors[400])
    messages = seen.client.api == "messages"
    _check_told(seen, status_code=400, **({} if messages else {"code": "content_filter"}))
    if messages:
        _check_told(seen, type="invalid_request_error")
    expect("requests", len(seen.stub.requests), 0)
    _check_no_secret(seen)


def blocked(seen: Seen) -> None:
    if not seen.private:
        if seen.client.probe == "text":
            expect("text", seen.answer["text"], blocked_text())
        return
    _check_no_secret(seen)
    error = seen.result.get("error")
    if error and seen.client.blocked in error["classes"]:
        return
    if seen.client.probe == "object" and seen.answer["object"] is None:
        return
    if seen.answer.get("finish") not in _FILTERED:
        raise Wrong(f"the end of a blocked answer is {seen.answer.get('finish')!r}")


def _check_upstream(seen: Seen) -> None:
    """What the policy redacts did not reach the upstream; what it does not, did."""
    received = dumped(seen.stub.requests)
    if not received:
        raise Wrong("the upstream received nothing")
    for value in (ADDRESS, CARD):
        if seen.private and value in received:
            raise Wrong(f"the upstream received {value}")
        if not seen.private and value not in received:
            raise Wrong(f"the upstream did not receive {value}")


def _check_end(seen: Seen) -> None:
    finish, tokens = seen.result.get("finish"), seen.result.get("tokens", "not told")
    if finish is not None and finish not in _ENDS:
        raise Wrong(f"the end is {finish!r}")
    if tokens != "not told":
        expect("tokens", tokens, TOKENS_IN + TOKENS_OUT)


def _check_hung_up(seen: Seen) -> None:
    if not seen.stub.hung_up.wait(_HANG_UP_S):
        raise Wrong(f"{_HANG_UP_S:.0f} s after the client hung up the upstream is still connected")


def _check_class(seen: Seen, name: str) -> None:
    if name not in seen.error["classes"]:
        raise Wrong(f"not {name}, but {seen.error['classes'][0]}: {seen.error['message'][:300]}")


def _check_message(seen: Seen, right: str) -> None:
    if right not in seen.error["message"]:
        raise Wrong(f"the message is not the upstream's: {seen.error['message'][:200]}")


def _check_told(seen: Seen, **right: object) -> None:
    """What the exception tells; what a client's exception has no name for is not compared."""
    for name, value in right.items():
        if name in seen.error:
            expect(name, seen.error[name], value)


def _check_no_secret(seen: Seen) -> None:
    if SECRET in json.dumps(seen.result):
        raise Wrong("the secret is in what the client got")


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


def _both(
    name: str, do: str, script: str, prompt: str, check: Callable[[Seen], None], **options: Any
) -> tuple[Feature, Feature]:
    return (
        Feature(name, do, script, prompt, check, **options),
        Feature(f"{name}, streamed", do, script, prompt, check, stream=True, **options),
    )


FEATURES: tuple[Feature, ...] = (
    *_both("text", "text", "greet", HELLO, greeted),
    *_both("personal data", "text", "repeat", PERSONAL, repeated),
    *_both("tool call", "tool", "call", PERSONAL, called),
    *_both("tool result", "loop", "call", PERSONAL, looped),
    *_both("structured output", "object", "object", PERSONAL, structured),
    *_both("refused request", "", "greet", LEAK, refused),
    *_both("blocked answer", "", "secret", HELLO, blocked),
    *_both("error 400", "", "400", HELLO, failed(400)),
    *_both("error 429", "", "429", HELLO, failed(429)),
    *_both("error 500", "", "500", HELLO, failed(500)),
    Feature("error in a stream", "", "broken", HELLO, broken, stream=True),
    *_both("wrong key", "", "greet", HELLO, unauthorized, key="nobody's key"),
    Feature("hang up, streamed", "hang_up", "endless", HELLO, hung_up, stream=True),
    *_both("time-out", "", "silent", HELLO, timed_out, timeout=0.7),
    Feature("embeddings", "embed", "greet", PERSONAL, embedded),
    Feature("list of models", "models", "greet", HELLO, listed),
)
