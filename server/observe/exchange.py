"""What is known of one HTTP exchange while it lasts: the source of its `X-` headers."""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass
from typing import cast

from starlette.requests import HTTPConnection

from guard.verdict import Outcome

_SANE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")
SCOPE_KEY = "guard.exchange"
MODEL = "guard.model"
"""In a scope: the model that a request names, None where nobody has read it."""
UPSTREAM = "guard.upstream"
"""In a scope: the upstream that a screen has chosen for a request."""


@dataclass(slots=True)
class Exchange:
    """`policy` and `outcome` are filled in as they become known.

    `counted`: the request has been counted against the rate of its key. `joined`: what the recorder
    knows its rows by while screens look at their answer, "" where none do.
    """

    request_id: str
    policy: str | None = None
    outcome: Outcome | None = None
    counted: bool = False
    joined: str = ""

    def headers(self) -> dict[str, str]:
        """`X-Request-Id` always, `X-Guard-Policy` and `X-Guard-Verdict` where they are known."""
        headers = {"X-Request-Id": self.request_id}
        if self.policy is not None:
            headers["X-Guard-Policy"] = self.policy
        if self.outcome is not None:
            headers["X-Guard-Verdict"] = self.outcome
        return headers


@dataclass(frozen=True, slots=True)
class NamedRoute:
    """A route as the metrics want it in a scope: by the template of its path."""

    path: str


def request_id(offered: str | None) -> str:
    """The client's own id where it is short and plain enough for a log line, else a new one."""
    if offered is not None and _SANE_ID.fullmatch(offered):
        return offered
    return f"req-{uuid.uuid4().hex}"


def exchange_of(connection: HTTPConnection) -> Exchange:
    """The exchange that the middleware opened for this request."""
    return cast(Exchange, connection.scope[SCOPE_KEY])
