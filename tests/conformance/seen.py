"""What a client got of one request, and the comparison with what is right."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from tests.conformance.clients import Client
from tests.conformance.upstream.answers import SECRET

NONE, PRIVATE = "none", "private"
ENDS = {"stop", "completed", "end_turn"}
FILTERED = {"content_filter", "content-filter", "refusal"}


class Wrong(Exception):
    """A client did not get what is right; the text says what it got."""


@dataclass(frozen=True)
class Seen:
    """What a client has seen of one request."""

    client: Client
    policy: str
    result: dict[str, Any]

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
        return dict(self.result["error"])

    def require_class(self, name: str) -> None:
        """The exception is of that class."""
        if name not in self.error["classes"]:
            raise Wrong(
                f"not {name}, but {self.error['classes'][0]}: {self.error['message'][:300]}"
            )

    def require_told(self, **right: object) -> None:
        """What the exception tells; what a client's exception has no name for is not compared."""
        for name, value in right.items():
            if name in self.error:
                expect(name, self.error[name], value)

    def require_no_secret(self) -> None:
        if SECRET in json.dumps(self.result):
            raise Wrong("the secret is in what the client got")

    def require_filtered(self) -> None:
        """The answer was blocked, as the client's API says it."""
        self.require_no_secret()
        error = self.result.get("error")
        if error and self.client.blocked in error["classes"]:
            return
        if self.client.probe == "object" and self.answer["object"] is None:
            return
        if self.answer.get("finish") not in FILTERED:
            raise Wrong(f"the end of a blocked answer is {self.answer.get('finish')!r}")

    def require_refused(self) -> None:
        """The request was refused by a screen."""
        self.require_class(self.client.errors[400])
        messages = self.client.api == "messages"
        self.require_told(status_code=400, **({} if messages else {"code": "content_filter"}))
        if messages:
            self.require_told(type="invalid_request_error")
        self.require_no_secret()

    def require_unauthorized(self) -> None:
        self.require_class(self.client.errors[401])
        messages = self.client.api == "messages"
        right = {"type": "authentication_error"} if messages else {"code": "invalid_api_key"}
        self.require_told(status_code=401, **right)


def expect(what: str, got: object, right: object) -> None:
    if got != right:
        raise Wrong(f"{what} is {got!r}, not {right!r}")
