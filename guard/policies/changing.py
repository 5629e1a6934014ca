"""A change of one policy before it is made: checked as the configuration would be with it."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import replace

from guard.config.schema import Config
from guard.errors import InvalidPolicy, PolicyNotFound
from guard.policies.effective import PolicyFile, edits, in_force
from guard.policies.versions import MAX_WHY, Change, Version, settings_of
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
    _require_plain(change.why)
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


def checked_edits(
    file: PolicyFile, current: Mapping[str, Version], of_file: Mapping[str, Version]
) -> tuple[Config, Sequence[Change]]:
    """The configuration with what was edited in the file since it gave the versions `of_file`, and
    these changes. Raises InvalidPolicy."""
    changes = edits(file, of_file)
    wanted = in_force(file, current)
    for change in changes:
        if change.settings is None:
            wanted.pop(change.policy, None)
        else:
            wanted[change.policy] = change.settings
    return file.with_policies(wanted, changes[0].policy if changes else ""), changes


def _require_plain(why: str) -> None:
    """Raise InvalidPolicy for a reason that is too long, or that a terminal would obey."""
    if len(why) > MAX_WHY or any(unicodedata.category(each) in {"Cc", "Cs"} for each in why):
        raise InvalidPolicy(f"A reason has at most {MAX_WHY} characters, on one line.", param="why")


def require_tenants(directory: Directory, before: Config, after: Config, policy: str) -> None:
    """Raise InvalidPolicy where a level that went on under `before` could not under `after`, in
    which `policy` has changed."""
    known = {*directory.policy_problems(before)}
    for problem in directory.policy_problems(after):
        if problem not in known:
            raise InvalidPolicy(f"The policy {policy!r} cannot change so: {problem}")
