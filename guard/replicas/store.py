"""What a store keeps for replicas, as values, and what it can be asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

REPLICA_LIFE_S = 10.0
"""A replica that has not asked for so long is dead: its running requests are no longer counted."""
SLOTS_LIFE_S = 60.0
BREAKER_LIFE_S = 3600.0
"""How long a breaker that nobody reports is remembered."""
MOST_CLAIMS = 1000
"""In one exchange."""


class StoreUnavailable(Exception):
    """The store does not answer; the message has no secret."""


@dataclass(frozen=True, slots=True)
class Claim:
    """What a replica tells of one level, and asks for.

    Limits a minute are those of the level, None without one. Of requests, `returned` were reserved
    and are not wanted any more, `needed` wait here, and up to `wanted` may be reserved. Of running
    requests, `slots_needed` run or wait here, and up to `slots_wanted` may be reserved.
    `tokens_spent` is what was used since the last claim.
    """

    name: str
    requests_per_minute: int | None = None
    returned: int = 0
    needed: int = 0
    wanted: int = 0
    tokens_per_minute: int | None = None
    tokens_spent: int = 0
    concurrent: int | None = None
    slots_needed: int = 0
    slots_wanted: int = 0


@dataclass(frozen=True, slots=True)
class Standing:
    """A level behind an exchange: what the store has left, without what replicas have reserved, and
    what this replica got. `slots` is all that it holds now; `slots_free` are those of nobody."""

    requests_left: float
    granted: int
    tokens_left: float
    slots: int
    slots_free: int


@dataclass(frozen=True, slots=True)
class BreakerReport:
    """What has happened to an upstream here since the last report.

    `answered`: an answer has begun, which closes the breaker. `succeeded`: one has ended well; then
    `failures` came after it. `opened`: the breaker opened here.
    """

    upstream: str
    threshold: int
    cooldown_s: float
    answered: bool
    succeeded: bool
    failures: int
    opened: bool


@dataclass(frozen=True, slots=True)
class BreakerState:
    """The breaker of all replicas: failures in a row, whether it is open, and for how long no
    request is sent (0: one may try)."""

    failures: int
    is_open: bool
    open_for_s: float


class ReplicaStore(Protocol):
    """Every method may be called from any thread, and raises StoreUnavailable."""

    def exchange(self, claims: Sequence[Claim]) -> list[Standing]:
        """Tell of levels, at most MOST_CLAIMS, each once; this replica lives for REPLICA_LIFE_S.

        Of what is left of requests, a replica gets what it needs, and beyond that at most a share
        of a half: `left / (2 * replicas)`. Of running requests likewise.
        """

    def breakers(self, reports: Sequence[BreakerReport]) -> list[BreakerState]:
        """Tell of upstreams, and read how it is with them."""

    def close(self) -> None:
        """Take this replica out, and close all connections."""
