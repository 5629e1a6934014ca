"""Bodies of the last requests under policies that keep their text: in memory, and nowhere else."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from guard.config.policy_schema import Place
from guard.config.schema import Config

MAX_BODY_BYTES = 2**20
MAX_BYTES = 64 * 2**20
"""Of all bodies together."""


@dataclass(frozen=True, slots=True)
class KeptBody:
    """A body of JSON as it came, and where its texts stand that have no place of their own."""

    policy: str
    raw: bytes
    default_place: Place


class KeptTexts:
    """At most `most` bodies, by tenant and id of their requests; used from one event loop."""

    def __init__(self, most: int) -> None:
        self._most, self._bytes = most, 0
        self._bodies: OrderedDict[tuple[str, str], KeptBody | None] = OrderedDict()

    def put(self, tenant: str, request_id: str, body: KeptBody) -> None:
        """Keep a body, and forget the oldest ones over the limits."""
        key = (tenant, request_id)
        if len(body.raw) > MAX_BODY_BYTES or not self._most:
            return
        if key in self._bodies:
            # ids are the clients': nobody could tell which of these requests was meant
            self._forget(key)
            self._bodies[key] = None
            return
        self._bodies[key] = body
        self._bytes += len(body.raw)
        while len(self._bodies) > self._most or self._bytes > MAX_BYTES:
            self._forget(next(iter(self._bodies)))

    def __len__(self) -> int:
        return len(self._bodies)

    def follow(self, config: Config) -> None:
        """Forget what is kept under policies that keep nothing any more."""
        keeping = {name for name, policy in config.policies.items() if policy.keep_text}
        for key, body in [*self._bodies.items()]:
            if body is not None and body.policy not in keeping:
                self._forget(key)

    def get(self, tenant: str, request_id: str, policy: str) -> KeptBody | None:
        """The body of a request under a policy; None where there is none, or more than one of the
        tenant with this id."""
        body = self._bodies.get((tenant, request_id))
        return body if body is not None and body.policy == policy else None

    def _forget(self, key: tuple[str, str]) -> None:
        body = self._bodies.pop(key)
        self._bytes -= len(body.raw) if body is not None else 0
