"""The state of one HTTP exchange, and the `X-` headers that are made of it."""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass
from typing import cast

from starlette.requests import HTTPConnection

from guard.verdict import Outcome

_PLAIN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")
SCOPE_KEY = "guard.exchange"
MODEL = "guard.model"
"""Key of an ASGI scope: the model that the request names, None where the body was not read."""
UPSTREAM = "guard.upstream"
"""Key of an ASGI scope: the upstream to which a screen has routed the request."""
DELEGATED = "guard.delegated"
"""Key of an ASGI scope: whether the upstream's plugin must apply a policy to the request."""


@dataclass(slots=True)
class Exchange:
    """The state of one HTTP request; `policy` and `outcome` are set once they are known.

    `counted`: the request was counted against the rate limit of its key. `record_id`: the id under
    which the recorder holds the verdicts of its rows while screens read the answer, else "".
    """

    request_id: str
    policy: str | None = None
    outcome: Outcome | None = None
    counted: bool = False
    record_id: str = ""

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
    """The route in an ASGI scope, with the template of its path, which labels the metrics."""

    path: str


def request_id(offered: str | None) -> str:
    """The client's `X-Request-Id` where it is short and plain enough for a log line, else a new
    one."""
    if offered is not None and _PLAIN_ID.fullmatch(offered):
        return offered
    return f"req-{uuid.uuid4().hex}"


def exchange_of(connection: HTTPConnection) -> Exchange:
    """The exchange that ExchangeMiddleware has put into the scope of this request."""
    return cast(Exchange, connection.scope[SCOPE_KEY])
