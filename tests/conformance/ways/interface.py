"""What every way offers, and the policies and keys that all have."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from tests.conformance.clients import Client
from tests.conformance.feature import Feature
from tests.conformance.processes import Running
from tests.conformance.seen import NONE, PRIVATE, Seen

KEYS = {NONE: "key-without-a-policy", PRIVATE: "key-of-the-private-policy"}
POLICIES = """
[[patterns]]
name = "secrets"
source = "secrets"
[[patterns]]
name = "personal-data"
source = "personal-data"

[policies.private]
guards = ["secrets", "personal-data"]
action = "redact"
[policies.private.screen]
actions = { secrets = "block" }
restore = true
"""


class Way(ABC):
    """One way, once its servers run; `faced` is the one that clients ask."""

    def __init__(self, name: str, faced: Running) -> None:
        self.name, self.faced = name, faced

    @property
    @abstractmethod
    def features(self) -> Sequence[Feature]:
        """What is tried on this way."""

    @abstractmethod
    def begin(self, feature: Feature) -> None:
        """A feature is about to be tried."""

    @abstractmethod
    def seen(self, client: Client, policy: str, result: dict[str, Any]) -> Seen:
        """What can be seen of the request that has just ended."""


def keys(policies: Mapping[str, str], **limits: int) -> str:
    """The `[[keys]]` of these keys by policy; `limits` are requests a minute, by policy."""
    lines = []
    for policy, key in policies.items():
        digest = hashlib.sha256(key.encode()).hexdigest()
        lines += ["[[keys]]", f'hash = "sha256:{digest}"', f'tenant = "{policy}"']
        if policy in limits:
            lines += [f"requests_per_minute = {limits[policy]}"]
        else:
            lines += [f'default_policy = "{policy}"']
    return "\n".join([*lines, ""])
