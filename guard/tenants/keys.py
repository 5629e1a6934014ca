"""Who a request is from: the keys of the configuration, those of a database, and tokens."""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from guard.config.schema import Config, KeyConfig
from guard.tenants.levels import LevelSettings, Role
from guard.tenants.meters import Lease, Ledger, Meter, RateLimit
from guard.tenants.secret import hash_key
from guard.verdict import VerdictDetail


@dataclass(frozen=True, slots=True, eq=False)
class Principal:
    """Who sends a request, and what it may do.

    `tenant` is the name in the audit log: of a database's keys "ORGANISATION/TEAM".
    `default_policy` or `verdict` None is the server's. It may ask for `policies` beside the
    default; whatever it asks for must do what the `required` ones do. `meters` count its requests,
    the own ones first.
    """

    tenant: str
    role: Role = "tenant"
    default_policy: str | None = None
    policies: tuple[str, ...] = ()
    required: tuple[str, ...] = ()
    embeddings: bool = False
    verdict: VerdictDetail | None = None
    meters: tuple[Meter, ...] = ()


class Identities(Protocol):
    """A source of principals beside the configuration."""

    ledger: Ledger

    def find(self, secret: str) -> Principal | None:
        """Whose secret it is; None if it is unknown here. Raises Unauthorized and GuardError."""


class KeyRing:
    """The keys of a configuration and, beside them, `others`; thread-safe.

    `clock` returns monotonic seconds.
    """

    def __init__(
        self,
        keys: Sequence[KeyConfig],
        others: Identities | None = None,
        *,
        role: Role = "tenant",
        ledger: Ledger | None = None,
    ) -> None:
        self.ledger = ledger or (others.ledger if others is not None else Ledger())
        self._others = others
        self._keys = [(key.hash.encode(), _principal(key, role, self.ledger)) for key in keys]

    def find(self, secret: str) -> Principal | None:
        """Whose key or token it is; None if it is unknown.

        The hash of every key of the configuration is compared, each in constant time, so that
        timing reveals nothing. Raises as the other source does.
        """
        digest = hash_key(secret).encode()
        match = None
        for known, principal in self._keys:
            if hmac.compare_digest(known, digest):
                match = principal
        if match is None and self._others is not None:
            match = self._others.find(secret)
        return match

    def take(self, principal: Principal) -> Lease:
        """Count one request in this process. Raises TooManyRequests over a limit of any level."""
        return self.ledger.take(principal.meters)

    async def admit(self, principal: Principal) -> Lease:
        """Count one request. Raises TooManyRequests over a limit of any level, LimitsUnavailable
        where limits are counted with other servers and cannot be."""
        return await self.ledger.admit(principal.meters)

    def rate_limits(self, principal: Principal) -> tuple[RateLimit | None, RateLimit | None]:
        """What is left of the limits of requests and of tokens, None where there is none."""
        return self.ledger.rate_limits(principal.meters)


def _principal(key: KeyConfig, role: Role, ledger: Ledger) -> Principal:
    meters: tuple[Meter, ...] = ()
    if key.requests_per_minute is not None:
        settings = LevelSettings(requests_per_minute=key.requests_per_minute)
        # one name in every server that has the key; hashed again, as stores are read by others
        name = f"file {hash_key(key.hash)[-32:]}"
        meters = (ledger.meter(name, "this key", settings, is_stored=False),)
    return Principal(
        tenant=key.tenant,
        role=role,
        default_policy=key.default_policy,
        policies=key.policies,
        embeddings=key.embeddings,
        verdict=key.verdict,
        meters=meters,
    )


def key_ring(
    config: Config, others: Identities | None = None, ledger: Ledger | None = None
) -> KeyRing | None:
    """Who may ask models; None where anybody may. `ledger` counts their requests."""
    if not config.keys and others is None:
        return None
    return KeyRing(config.keys, others, ledger=ledger)


def admin_ring(config: Config, others: Identities | None = None) -> KeyRing | None:
    """Who may change what runs: the administrator's key, and the keys of `others` with a role; None
    where nobody may."""
    admin = config.server.admin_hash
    if admin is None and others is None:
        return None
    keys = [KeyConfig(hash=admin, tenant="admin")] if admin is not None else []
    return KeyRing(keys, others, role="admin")
