"""The versions of a configuration's policies, as commands open them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from guard.audit import AuditLog
from guard.config.schema import Config
from guard.errors import ConfigError, GuardError
from guard.policies.acts import append_line
from guard.policies.changing import (
    checked_change,
    checked_edits,
    current_version,
    require_tenants,
)
from guard.policies.effective import PolicyFile, in_force
from guard.policies.store import VersionStore, store_of
from guard.policies.versions import Act, Change, Settings, Version
from guard.tenants.directory import Directory
from guard.tenants.directory import store_of as tenants_of

BY = "command"


@dataclass(frozen=True, slots=True)
class OpenedPolicies:
    """The versions, and what they are of."""

    file: PolicyFile
    store: VersionStore
    audit: AuditLog | None

    def current(self) -> Mapping[str, Version]:
        """The last version of each policy."""
        return self.store.current()

    def config(self) -> Config:
        """The configuration as a server has it now."""
        return self.file.with_policies(in_force(self.file, self.current()))

    def version(self, policy: str, number: int | None) -> Version:
        """A version, or that in force. Raises PolicyNotFound and VersionNotFound."""
        if number is None:
            return current_version(self.current(), policy)
        return self.store.version(policy, number)

    def change(self, policy: str, act: Act, settings: Settings | None, why: str) -> Version:
        """Make a version, once all of it is checked. Raises GuardError."""
        current = self.current()
        change = Change(policy, act, settings, BY, why)
        config, change = checked_change(self.file, current, change)
        (made,) = self._append(current, [change], config)
        return made

    def add_edits(self) -> None:
        """Make versions of what was edited in the file, once all of it is checked. Raises
        GuardError."""
        current = self.current()
        config, changes = checked_edits(self.file, current, self.store.of_file())
        if changes:
            self._append(current, changes, config)

    def _append(
        self, current: Mapping[str, Version], changes: Sequence[Change], config: Config
    ) -> Sequence[Version]:
        with _directory(self.file.config) as directory:
            if directory is not None:
                before = self.file.with_policies(in_force(self.file, current))
                for change in changes:
                    require_tenants(directory, before, config, change.policy)
        last = max((each.revision for each in current.values()), default=0)
        made = self.store.append(changes, last)
        try:
            for version in made:
                append_line(self.audit, version)
        except OSError as error:
            raise GuardError(
                f"the change was made, but the audit log lacks its line: {error}"
            ) from error
        return made


@contextmanager
def opened_policies(path: Path, *, changing: bool = False) -> Iterator[OpenedPolicies]:
    """The versions of the configuration in the file `path`.

    What was edited in the file is among them where there was none, or where one is about to be
    changed: to look at them with an old copy of the file must put nothing in force. Raises
    GuardError.
    """
    file = PolicyFile(path)
    if not file.config.live_policies.is_configured:
        raise ConfigError(
            [f'{path}: there is no database: add database = "..." to [live_policies]']
        )
    server = file.config.server
    log = AuditLog(server.audit_log, key=server.audit_key) if server.audit_log else nullcontext()
    with log as audit:
        store = store_of(file.config)
        try:
            opened = OpenedPolicies(file, store, audit)
            if changing or not opened.current():
                opened.add_edits()
            yield opened
        finally:
            store.database.close()


@contextmanager
def _directory(config: Config) -> Iterator[Directory | None]:
    """The tenants of a configuration as they are now, or None."""
    if not config.tenants.is_configured:
        yield None
        return
    store = tenants_of(config)
    try:
        directory = Directory(store)
        directory.refresh()
        yield directory
    finally:
        store.database.close()
