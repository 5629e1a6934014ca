"""The state of one HTTP exchange: what its client is told, and in which shape."""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass, field
from typing import Any, cast

from starlette.datastructures import Headers
from starlette.requests import HTTPConnection
from starlette.types import Scope

from guard.config.schema import Config
from guard.tenants.keys import KeyRing, Principal
from guard.tenants.meters import Lease
from guard.verdict import Outcome, Verdict, VerdictDetail, shown
from server.error_shapes import OPENAI, ErrorShape, shape_of
from server.observe.rate_limits import limit_headers
from server.observe.tracing import Trace

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

    `lease`: the request was counted against the limits of its key. `record_id`: the id under which
    the recorder holds the verdicts of its rows while screens read the answer, else "".
    `config` is the configuration that the request is decided under, once it is.
    `error_shape` is that of the API that was called, `detail` how much of the verdict the client is
    told, `message` what its policy says in place of a blocked answer, and `trace` has its spans.
    """

    request_id: str
    policy: str | None = None
    outcome: Outcome | None = None
    lease: Lease | None = None
    record_id: str = ""
    error_shape: ErrorShape = OPENAI
    detail: VerdictDetail = "full"
    message: str | None = None
    trace: Trace = field(default_factory=Trace)
    config: Config | None = None
    _keys: KeyRing | None = None
    _key: Principal | None = None

    @classmethod
    def of(cls, scope: Scope) -> Exchange:
        """The exchange of a new HTTP request."""
        headers = Headers(scope=scope)
        return cls(
            request_id(headers.get("x-request-id")),
            error_shape=shape_of(scope["path"], headers),
        )

    def identify(self, config: Config, keys: KeyRing | None, key: Principal | None) -> None:
        """The client is known by its key, one of `keys`; None on a server without keys."""
        own = key.verdict if key is not None else None
        self.detail = own or config.server.verdict
        self._keys, self._key = keys, key

    def spend(self, tokens: int) -> None:
        """Count tokens against the limits of the key."""
        if self.lease is not None:
            self.lease.spend(tokens)

    def end(self) -> None:
        """Nothing more of the response leaves."""
        if self.lease is not None:
            self.lease.close()

    def under(self, config: Config) -> Config:
        """The configuration that the request is decided under: `config`, or the one of the first
        call, so that a change of policies never meets half a request."""
        self.config = self.config or config
        return self.config

    def apply(self, config: Config, policy: str) -> None:
        """The policy is known. Raises UnknownPolicy."""
        self.policy, self.message = policy, config.policy(policy).message

    def guard(self, verdict: Verdict) -> dict[str, Any]:
        """The member `guard` of a body or an event; none where the client is not told of it."""
        guard = shown(verdict.as_dict(), self.detail)
        return {"guard": guard} if guard is not None else {}

    def headers(self) -> dict[str, str]:
        """`X-Request-Id` always, what is left of the key's limits where it has any,
        `X-Guard-Policy` and `X-Guard-Verdict` where they are known and the client is told of
        them."""
        headers = {"X-Request-Id": self.request_id}
        if self._keys is not None and self._key is not None and self._key.meters:
            headers |= limit_headers(self.error_shape, *self._keys.rate_limits(self._key))
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
