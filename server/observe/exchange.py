"""The state of one HTTP exchange: what its client is told, and in which shape."""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass
from typing import Any, cast

from starlette.datastructures import Headers
from starlette.requests import HTTPConnection
from starlette.types import Scope

from guard.config.schema import Config, KeyConfig
from guard.verdict import Outcome, Verdict, VerdictDetail, shown
from server.error_shapes import OPENAI, ErrorShape, shape_of

_PLAIN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")
SCOPE_KEY = "guard.exchange"
MODEL = "guard.model"
"""Key of an ASGI scope: the model that the request names, None where the body was not read."""
CLIENT = "guard.client"
"""Key of an ASGI scope: what clients are told apart by, their tenant or their address."""
UPSTREAM = "guard.upstream"
"""Key of an ASGI scope: the upstream to which a screen has routed the request."""
DELEGATED = "guard.delegated"
"""Key of an ASGI scope: whether the upstream's plugin must apply a policy to the request."""


@dataclass(slots=True)
class Exchange:
    """The state of one HTTP request; `policy` and `outcome` are set once they are known.

    `counted`: the request was counted against the rate limit of its key. `record_id`: the id under
    which the recorder holds the verdicts of its rows while screens read the answer, else "".
    `error_shape` is that of the API that was called, `detail` how much of the verdict the client is
    told, and `message` what its policy says in place of a blocked answer.
    """

    request_id: str
    policy: str | None = None
    outcome: Outcome | None = None
    counted: bool = False
    record_id: str = ""
    error_shape: ErrorShape = OPENAI
    detail: VerdictDetail = "full"
    message: str | None = None

    @classmethod
    def of(cls, scope: Scope) -> Exchange:
        """The exchange of a new HTTP request."""
        headers = Headers(scope=scope)
        return cls(
            request_id(headers.get("x-request-id")),
            error_shape=shape_of(scope["path"], headers),
        )

    def identify(self, config: Config, key: KeyConfig | None) -> None:
        """The client is known by its key, None on a server without keys."""
        own = key.verdict if key is not None else None
        self.detail = own or config.server.verdict

    def apply(self, config: Config, policy: str) -> None:
        """The policy is known. Raises UnknownPolicy."""
        self.policy, self.message = policy, config.policy(policy).message

    def guard(self, verdict: Verdict) -> dict[str, Any]:
        """The member `guard` of a body or an event; none where the client is not told of it."""
        guard = shown(verdict.as_dict(), self.detail)
        return {"guard": guard} if guard is not None else {}

    def headers(self) -> dict[str, str]:
        """`X-Request-Id` always, `X-Guard-Policy` and `X-Guard-Verdict` where they are known and
        the client is told of them."""
        headers = {"X-Request-Id": self.request_id}
        if self.detail == "none":
            return headers
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
