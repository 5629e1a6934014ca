"""The policies that requests to a vLLM engine may name, and their default."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from guard.config.schema import Config
from guard.config.vllm_plugin import POLICY
from guard.errors import ConfigError
from guard.plans.revision import Revision, RevisionEntry, digest
from server.vllm.screens import TextScreens


class Policies:
    """The policies that requests to one engine may name, and their default.

    A reload replaces the object as a whole.
    """

    def __init__(
        self,
        path: Path,
        config: Config,
        revision: Revision,
        *,
        keyed: bool,
        earlier: Policies | None = None,
    ) -> None:
        """`keyed` is as in `install`, `earlier` what these policies replace.

        Where `keyed` is True, raises ConfigError for a default without guards, and GuardFailed for
        policies that cannot be applied.
        """
        self.path, self.config, self.revision, self.keyed = path, config, revision, keyed
        if keyed:
            _require_known(config)
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
            if not keyed or name == self.default or allowed_by_all_keys(config, name)
        }
        for entry in self.entries.values() if keyed else ():
            entry.plan.require_whole()
        self.screens: TextScreens | None = None
        """None where no policy screens text, or the server around this engine does."""
        if keyed and any(entry.plan.texts for entry in self.entries.values()):
            known = earlier.screens if earlier is not None else None
            self.screens = TextScreens(config, self.entries, known)

    def entry_for(self, extra: Mapping[str, Any] | None) -> RevisionEntry:
        """The policy of a request with the extra arguments `extra`. Raises ValueError for a policy
        that it may not name."""
        return self.entry((extra or {}).get(POLICY, self.default))

    def entry(self, name: object) -> RevisionEntry:
        """The policy of this name. Raises ValueError where requests may not name it."""
        entry = self.entries.get(name) if isinstance(name, str) else None
        if entry is None:
            shown = repr(name)[:80] if isinstance(name, str | int | None) else type(name).__name__
            raise ValueError(
                f"there is no policy {shown} here: use one of {', '.join(self.entries)}"
            )
        return entry


def _require_known(config: Config) -> None:
    """Raise ConfigError for what `guard serve` and `guard proxy` alone do with policies."""
    where = "is for `guard serve` and `guard proxy`, and not for vLLM's own server: leave it out"
    problems = [
        f"policies.{name}.shadow: {where}"
        for name, policy in config.policies.items()
        if policy.shadow is not None
    ]
    if config.live_policies.is_configured:
        problems.append(f"live_policies: {where}, which follows its file on POST /guard/reload")
    if problems:
        raise ConfigError(problems)


def require_guarded(entry: RevisionEntry, *, pools: bool, is_screened: bool = False) -> None:
    """Raise ValueError for a request that its policy would not be applied to: one for embeddings or
    classes, which has no tokens that guards decide on; one whose texts nobody has read."""
    plan = entry.plan
    if pools and plan.guards and plan.on_error == "closed":
        raise ValueError(
            f"policy {plan.policy!r} cannot be applied to pooling: generate, or ask for a policy "
            "without guards"
        )
    if plan.texts and not is_screened:
        raise ValueError(
            f"policy {plan.policy!r} has screens ({', '.join(plan.texts)}), which read "
            "JSON over HTTP alone, at /v1/chat/completions, /v1/completions, /v1/responses and "
            "/v1/messages: ask for another policy"
        )


def allowed_by_all_keys(config: Config, policy: str) -> bool:
    """Whether every key of the configuration allows a policy: vLLM knows no key of a request."""
    return all(policy in {key.default_policy, *key.policies} for key in config.keys)


def salted(salt: str | None, plan: str | None) -> str | None:
    """The salt of a request's prefix cache, from the client's own salt and the salt of its plan.

    Both are hashed together, so that no client's salt can collide with that of another plan.
    """
    return None if salt is None and plan is None else digest([salt, plan])
