"""Which policies requests to a vLLM engine may ask for, and what they get that ask for none."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from guard.config.schema import Config
from guard.config.vllm_plugin import POLICY
from guard.errors import ConfigError
from guard.plans.revision import Revision, RevisionEntry, digest


class Policies:
    """What requests to one engine may ask for, and what they get that ask for nothing.

    One that is read anew takes its place as a whole.
    """

    def __init__(self, path: Path, config: Config, generation: Revision, *, keyed: bool) -> None:
        """`keyed` False is for a front end that chooses the policy of every request itself. Else
        raises ConfigError where a request that asks for nothing would go unguarded, and GuardFailed
        for policies that cannot be applied."""
        self.path, self.generation, self.keyed = path, generation, keyed
        self.earlier: set[str] = set()
        """The keys of earlier generations that requests may still have."""
        self.default = config.server.default_policy
        entries = generation.entries
        if keyed and self.default not in entries:
            told = f"the default policy {self.default!r} has no guard for a language model"
            raise ConfigError([f"{told}: it would leave every request unguarded"])
        self.entries: Mapping[str, RevisionEntry] = {
            name: entry
            for name, entry in entries.items()
            if not keyed
            or name == self.default
            # nobody here runs screens of text
            or (askable(config, name) and not entry.plan.texts)
        }
        if keyed:
            entries[self.default].plan.require_no_texts()
        for entry in self.entries.values() if keyed else ():
            entry.plan.require_whole()

    def asked(self, extra: Mapping[str, Any] | None) -> RevisionEntry:
        """The policy of a request. Raises ValueError for one that it may not have."""
        name = (extra or {}).get(POLICY, self.default)
        entry = self.entries.get(name) if isinstance(name, str) else None
        if entry is None:
            told = repr(name)[:80] if isinstance(name, str | int | None) else type(name).__name__
            raise ValueError(f"there is no policy {told} here, but {', '.join(self.entries)}")
        return entry


def askable(config: Config, policy: str) -> bool:
    """Whether all keys of the configuration, which vLLM does not know, may ask for a policy."""
    return all(policy in {key.default_policy, *key.policies} for key in config.keys)


def salted(given: str | None, plan: str | None) -> str | None:
    """The salt of a request's cached keys: what it has `given`, and its plan.

    Whoever gives a salt cannot make it that of another plan: all that are given are hashed.
    """
    return None if given is None and plan is None else digest([given, plan])
