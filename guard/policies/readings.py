"""What the screens of a policy read, and since when: recorded scores are of what was read then."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from guard.config.policy_schema import PolicyConfig
from guard.policies.store import VersionStore
from guard.policies.versions import Settings, settings_of

_OF_SCREENS = ("look", "looks", "turns", "ocr", "unscreened")
"""Settings of screens that say what is read."""
_MOST_VERSIONS = 1000
_FOLLOWING_S = 1.0
"""The longest that a server goes on under an earlier version."""


def reads_alike(one: PolicyConfig, other: PolicyConfig) -> bool:
    """Whether the screens of two policies read the same of a request."""
    return _reading(settings_of(one)) == _reading(settings_of(other))


def same_since(
    store: VersionStore, policies: Mapping[str, PolicyConfig], names: Iterable[str]
) -> Mapping[str, float]:
    """Since when the screens of the policies `names` have read what they read now, in seconds since
    the epoch; 0 where no version is known under which they did not. Raises DatabaseUnavailable."""
    found = {}
    for name in names:
        wanted = _reading(settings_of(policies[name])) if name in policies else None
        versions = store.versions(name, limit=_MOST_VERSIONS)
        since = 0.0 if len(versions) < _MOST_VERSIONS else versions[-1].time + _FOLLOWING_S
        later = 0.0
        for version in versions:
            if version.settings is None or _reading(version.settings) != wanted:
                since = later + _FOLLOWING_S
                break
            later = version.time
        found[name] = since
    return found


def _reading(settings: Settings) -> tuple[Any, ...]:
    screen = settings.get("screen", {})
    return settings.get("scope"), *(screen.get(key) for key in _OF_SCREENS)
