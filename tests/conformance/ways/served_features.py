"""What is tried with each client on a server, and what is right."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from tests.conformance.feature import Feature, both
from tests.conformance.scripted_model import GREETING
from tests.conformance.seen import Seen, Wrong, expect
from tests.conformance.upstream.stub import MODEL
from tests.conformance.ways.interface import KEYS
from tests.conformance.ways.proxied_features import HELLO, LEAK

BLOCKED, SLOW, QUICK = "blocked", "slow", "quick"
LIMITS = {SLOW: 1, QUICK: 30}
"""Requests a minute of keys that have used them up when a client asks."""
SERVED_KEYS = {
    BLOCKED: "key-of-the-blocked-policy",
    SLOW: "key-of-one-request-a-minute",
    QUICK: "key-of-thirty-requests-a-minute",
}
LONG = "word " * 40_000
"""A prompt that is longer than the model reads."""
MAIL = "Send a mail to ada@example.org."
CARD = (
    'Give the contact as JSON: {"name": "Ada", "email": "ada@example.org", "note": "x", "age": 36}'
)
TALE = "Write a tale of a thousand words."
LONG_TALE = f"{TALE} Begin with:{' word' * 4_000}"
"""Nothing is answered before it was read, not even an object."""

_ENDS = {"stop", "completed", "end_turn", "length", "max_output_tokens", "max_tokens", "incomplete"}
_ENDED_S = 15.0
_PNG = b"\x89PNG\r\n"


@dataclass(frozen=True)
class At(Seen):
    """What the server has recorded, too: `verdicts` are the lines since the feature was begun.

    `is_scripted`: what the model says is known.
    """

    verdicts: Callable[[], list[dict[str, Any]]]
    is_scripted: bool

    def require_a_verdict(self) -> None:
        """The request has a verdict within some seconds, although its client is gone."""
        end = time.monotonic() + _ENDED_S
        while not self.verdicts():
            if time.monotonic() > end:
                raise Wrong(f"{_ENDED_S:.0f} s after the client hung up its request still runs")
            time.sleep(0.1)


def answered(seen: At) -> None:
    if seen.client.probe == "object":
        wrote_object(seen)
        return
    if not seen.answer["text"]:
        raise Wrong("the text is empty")
    if seen.is_scripted:
        expect("text", seen.answer["text"], GREETING)
    finish, tokens = seen.answer.get("finish"), seen.answer.get("tokens", "not told")
    if finish is not None and finish not in _ENDS:
        raise Wrong(f"the end is {finish!r}")
    if tokens != "not told" and not (isinstance(tokens, int) and tokens > 1):
        raise Wrong(f"the number of tokens is {tokens!r}")


def called(seen: At) -> None:
    expect("name", seen.answer["name"], "send_mail")
    arguments = seen.answer["arguments"]
    expect("arguments", {name: type(value) for name, value in arguments.items()}, _ARGUMENTS)


def wrote_object(seen: At) -> None:
    written = seen.answer["object"]
    expect("object", {name: type(value) for name, value in written.items()}, _MEMBERS)


def embedded(seen: At) -> None:
    vector = seen.answer["vector"]
    if not vector or not all(isinstance(number, float) for number in vector):
        raise Wrong(f"the vector is {str(vector)[:100]}")
    if not 0.99 < sum(number * number for number in vector) < 1.01:
        raise Wrong("the vector has not the length 1")


def drawn(seen: At) -> None:
    if not base64.b64decode(seen.answer["image"]).startswith(_PNG):
        raise Wrong("the image is no PNG file")


def listed(seen: At) -> None:
    if MODEL not in seen.answer["names"]:
        raise Wrong(f"{MODEL} is not among {seen.answer['names']}")


def refused(seen: At) -> None:
    seen.require_refused()


def blocked(seen: At) -> None:
    seen.require_filtered()


def too_long(seen: At) -> None:
    seen.require_class(seen.client.errors[400])
    messages = seen.client.api == "messages"
    right = {"type": "invalid_request_error"} if messages else {"code": "context_length_exceeded"}
    seen.require_told(status_code=400, **right)


def limited(seen: At) -> None:
    seen.require_class(seen.client.errors[429])
    messages = seen.client.api == "messages"
    right = {"type": "rate_limit_error"} if messages else {"code": "rate_limit_exceeded"}
    seen.require_told(status_code=429, **right)
    if "retry_after" in seen.error and int(seen.error["retry_after"]) < 1:
        raise Wrong(f"Retry-After is {seen.error['retry_after']}")


def unauthorized(seen: At) -> None:
    seen.require_unauthorized()


def hung_up(seen: At) -> None:
    if not seen.answer["text"]:
        raise Wrong("no text came before the client hung up")
    seen.require_a_verdict()


def timed_out(seen: At) -> None:
    seen.require_class(seen.client.timeout)
    seen.require_a_verdict()


_ARGUMENTS = {"to": str, "text": str, "copies": int}
_MEMBERS = {"name": str, "email": str, "note": str, "age": int}
_PATIENCE_S = 90.0

_ASKED: tuple[Feature, ...] = (
    *both("text", "text", "", HELLO, answered),
    *both("tool call", "tool", "", MAIL, called, forced=True),
    *both("tool result", "loop", "", MAIL, answered),
    *both("structured output", "object", "", CARD, wrote_object),
    *both("refused request", "", "", LEAK, refused, key=KEYS["private"]),
    *both("blocked answer", "", "", HELLO, blocked, key=SERVED_KEYS[BLOCKED]),
    *both("error 400", "", "", LONG, too_long),
    *both("rate limit", "", "", HELLO, limited, key=SERVED_KEYS[SLOW]),
    *both("wrong key", "", "", HELLO, unauthorized, key="nobody's key"),
    Feature("tried again", "", "", HELLO, answered, key=SERVED_KEYS[QUICK], retries=3),
    Feature("hang up, streamed", "hang_up", "", TALE, hung_up, stream=True),
    Feature("time-out", "", "", LONG_TALE, timed_out, timeout=0.4),
    Feature("image", "image", "", "a cat", drawn),
    Feature("embeddings", "embed", "", HELLO, embedded),
    Feature("list of models", "models", "", HELLO, listed),
)
# a model takes its time
FEATURES = tuple(
    replace(feature, timeout=max(feature.timeout, _PATIENCE_S))
    if feature.check is not timed_out
    else feature
    for feature in _ASKED
)
