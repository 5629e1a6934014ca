"""A change of one policy before it is made: checked as the configuration would be with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from guard.config.schema import Config
from guard.errors import InvalidPolicy, PolicyNotFound
from guard.policies.effective import PolicyFile, in_force
from guard.policies.versions import Change, Version, settings_of
from guard.tenants.directory import Directory


def current_version(current: Mapping[str, Version], policy: str) -> Version:
    """The version of a policy that is in force. Raises PolicyNotFound."""
    version = current.get(policy)
    if version is None or version.settings is None:
        raise PolicyNotFound(f"There is no policy {policy[:130]!r}.")
    return version


def checked_change(
    file: PolicyFile, current: Mapping[str, Version], change: Change
) -> tuple[Config, Change]:
    """The configuration with a change, and the change in the one spelling of its settings.

    Raises InvalidPolicy, and PolicyNotFound for one that would remove what is not there.
    """
    wanted = in_force(file, current)
    if change.settings is None:
        current_version(current, change.policy)
        wanted.pop(change.policy)
    else:
        wanted[change.policy] = change.settings
    config = file.with_policies(wanted, change.policy)
    if change.settings is not None:
        change = replace(change, settings=settings_of(config.policies[change.policy]))
    return config, change


def require_tenants(directory: Directory, before: Config, after: Config, policy: str) -> None:
    """Raise InvalidPolicy where a level that went on under `before` could not under `after`, in
    which `policy` has changed."""
    known = {*directory.policy_problems(before)}
    for problem in directory.policy_problems(after):
        if problem not in known:
            raise InvalidPolicy(f"The policy {policy!r} cannot change so: {problem}")
