"""The policies that requests to a vLLM engine may name, and their default."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from guard.config.schema import Config
from guard.config.vllm_plugin import POLICY
from guard.errors import ConfigError
from guard.plans.revision import Revision, RevisionEntry, digest


class Policies:
    """The policies that requests to one engine may name, and their default.

    A reload replaces the object as a whole.
    """

    def __init__(self, path: Path, config: Config, revision: Revision, *, keyed: bool) -> None:
        """`keyed` is as in `install`. Where it is True, raises ConfigError for a default without
        guards, and GuardFailed for policies that cannot be applied."""
        self.path, self.revision, self.keyed = path, revision, keyed
        self.earlier_keys: set[str] = set()
        """Keys of earlier revisions that running requests may still have."""
        self.default = config.server.default_policy
        entries = revision.entries
        if keyed and self.default not in entries:
            problem = f"the default policy {self.default!r} has no guard for a language model"
            raise ConfigError([f"{problem}: it would leave every request unguarded"])
        self.entries: Mapping[str, RevisionEntry] = {
            name: entry
            for name, entry in entries.items()
            if not keyed
            or name == self.default
            # the plugin does not run text screens
            or (allowed_by_all_keys(config, name) and not entry.plan.texts)
        }
        if keyed:
            entries[self.default].plan.require_no_texts()
        for entry in self.entries.values() if keyed else ():
            entry.plan.require_whole()

    def entry_for(self, extra: Mapping[str, Any] | None) -> RevisionEntry:
        """The policy of a request with the extra arguments `extra`. Raises ValueError for a policy
        that it may not name."""
        name = (extra or {}).get(POLICY, self.default)
        entry = self.entries.get(name) if isinstance(name, str) else None
        if entry is None:
            shown = repr(name)[:80] if isinstance(name, str | int | None) else type(name).__name__
            raise ValueError(
                f"there is no policy {shown} here: use one of {', '.join(self.entries)}"
            )
        return entry


def require_guarded(entry: RevisionEntry, *, pools: bool) -> None:
    """Raise ValueError for a request that guards would not follow: one for embeddings or classes,
    which has no tokens to decide on."""
    plan = entry.plan
    if pools and plan.guards and plan.on_error == "closed":
        raise ValueError(
            f"policy {plan.policy!r} cannot be applied to pooling: generate, or ask for a policy "
            "without guards"
        )


def allowed_by_all_keys(config: Config, policy: str) -> bool:
    """Whether every key of the configuration allows a policy: vLLM knows no key of a request."""
    return all(policy in {key.default_policy, *key.policies} for key in config.keys)


def salted(salt: str | None, plan: str | None) -> str | None:
    """The salt of a request's prefix cache, from the client's own salt and the salt of its plan.

    Both are hashed together, so that no client's salt can collide with that of another plan.
    """
    return None if salt is None and plan is None else digest([salt, plan])
