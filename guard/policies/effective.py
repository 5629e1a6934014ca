"""The configuration with other policies than those of its file, checked as the file is."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from guard.config.schema import MAX_CONFIG_BYTES, Config, checked, dotted, read_toml, valid
from guard.errors import ConfigError, InvalidPolicy
from guard.policies.versions import Change, Settings, Version, settings_of

_ROOT = "policies"


class PolicyFile:
    """A configuration file as it was read: what is beside the policies stays until a restart."""

    def __init__(self, path: Path) -> None:
        """Raises ConfigError."""
        self.path, self.stamp = path, stamp_of(path)
        # read once: of two readings the second could be of a file that was edited in between
        self._data, lines = read_toml(path)
        self.config = valid(self._data, lines, path)
        # the artifacts that were found: a change of policies must not wait for the store of a URL
        found = zip(self._data.get("guards", ()), self.config.guards, strict=True)
        guards = [{**guard, "artifact": str(loaded.artifact)} for guard, loaded in found]
        self._beside = {**self._data, "guards": guards}
        self.policies = {name: settings_of(each) for name, each in self.config.policies.items()}

    def reread(self) -> PolicyFile:
        """The file as it is now.

        Raises ConfigError where it does not hold, or where anything but policies has changed.
        """
        now = PolicyFile(self.path)
        names = self._data.keys() | now._data.keys()
        if others := sorted(n for n in names - {_ROOT} if self._data.get(n) != now._data.get(n)):
            sections = ", ".join(f"[{name}]" for name in others)
            raise ConfigError(
                [
                    f"{self.path}: {sections}: has changed too, and only policies change while the "
                    "server runs: restart it, or take that back"
                ]
            )
        return now

    def with_policies(self, policies: Mapping[str, Settings], changed: str = "") -> Config:
        """The configuration with these policies in place of the file's.

        Raises InvalidPolicy, with the place of the first fault in the policy `changed`, or in the
        whole.
        """
        if (size := len(json.dumps(_plain(policies)))) > MAX_CONFIG_BYTES:
            raise InvalidPolicy(
                f"All policies together would have {size} bytes; {MAX_CONFIG_BYTES} are the most, "
                "as in a file."
            )
        config, problems = checked({**self._beside, _ROOT: _plain(policies)}, self.path)
        if config is not None:
            return config
        own = [(place[2:], reason) for place, reason in problems if place[:2] == (_ROOT, changed)]
        others = [(place, reason) for place, reason in problems if place[:2] != (_ROOT, changed)]
        located = sorted((dotted(place), reason) for place, reason in own)
        located += sorted((dotted(place), reason) for place, reason in others)
        message = "; ".join(f"{place}: {reason}" if place else reason for place, reason in located)
        raise InvalidPolicy(message, param=located[0][0] or None)


def stamp_of(path: Path) -> tuple[int, ...]:
    """What tells whether a file is another one; none of its own where it is missing."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_mtime_ns, found.st_size, found.st_ino


def in_force(file: PolicyFile, current: Mapping[str, Version]) -> dict[str, Settings]:
    """The settings of all policies: those of the file, and of the versions in place of them."""
    policies: dict[str, Settings] = dict(file.policies)
    for name, version in current.items():
        if version.settings is None:
            policies.pop(name, None)
        else:
            policies[name] = version.settings
    return policies


def edits(file: PolicyFile, of_file: Mapping[str, Version]) -> Sequence[Change]:
    """What was edited in the file since it gave these versions: what is edited last is in force,
    whatever was changed in another way before."""
    before = {name: version.settings for name, version in of_file.items()}
    names = dict.fromkeys([*file.policies, *before])
    return [
        Change(name, "file", file.policies.get(name), by="file")
        for name in names
        if file.policies.get(name) != before.get(name)
    ]


def _plain(policies: Mapping[str, Settings]) -> dict[str, Any]:
    return {name: dict(settings) for name, settings in policies.items()}
