"""Policies of a running server: changed by administrators, by the file, and by other servers.

Versions are in a store; what it says last is in force. All methods are called on the event loop,
but `open`, which is called before.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from guard.audit import AuditLog
from guard.config.schema import Config
from guard.errors import (
    ConfigError,
    DatabaseUnavailable,
    GuardError,
    InvalidPolicy,
    PolicyChanged,
)
from guard.policies.acts import append_line
from guard.policies.changing import checked_change, checked_edits, current_version
from guard.policies.effective import PolicyFile, in_force, stamp_of
from guard.policies.store import VersionStore
from guard.policies.versions import Act, Change, Settings, Version
from server.policies.live import LiveConfiguration
from server.policies.metrics import PolicyMetrics

logger = logging.getLogger(__name__)

Check = Callable[[Config, str], None]
"""Raises InvalidPolicy where a configuration cannot be followed here; takes the policy's name."""
ATTEMPTS = 5
"""To put a change behind those that others make at the same time."""


class LivePolicies:
    """The policies of `live`, whose versions are in `store`, and which `file` has too.

    All but the policies stays as `live` had it at first; `check` refuses what cannot act here.
    """

    def __init__(
        self,
        live: LiveConfiguration,
        store: VersionStore,
        file: PolicyFile,
        *,
        check: Check = lambda config, name: None,
        audit: AuditLog | None = None,
        audit_failed: Callable[[], None] = lambda: None,
        metrics: PolicyMetrics | None = None,
    ) -> None:
        self.live, self.store = live, store
        self._file, self._start, self._check = file, live.base, check
        self._settings = file.config.live_policies
        self._seen = self._last_stamp = file.stamp
        self._audit, self._audit_failed = audit, audit_failed
        self._metrics = metrics
        self._current: Mapping[str, Version] = {}
        self._revision = -1
        """That of what is in force; of a change that is refused here too."""
        self._task: asyncio.Task[None] | None = None

    # -- the life of the server -------------------------------------------------------------------

    def open(self) -> None:
        """Put in force what the store says. Raises GuardError, also where that does not hold."""
        for attempt in range(1, ATTEMPTS + 1):
            try:
                self._note(self._add_edits())
                revision, current = self._read()
                config = self._file.with_policies(in_force(self._file, current))
                break
            except PolicyChanged:
                # servers with the same file that start together: one of them was quicker
                if attempt == ATTEMPTS:
                    raise
            except InvalidPolicy as error:
                raise GuardError(
                    f"the policies in the database of [live_policies] do not go with "
                    f"{self._file.path}: {error.message}; change the file, or a policy with `guard "
                    "policy put`"
                ) from error
        self.live.set(self._adapted(config))
        self._take(revision, current)

    def start(self) -> None:
        """Begin to follow the store and the file."""
        self._task = asyncio.create_task(self._follow())

    async def close(self) -> None:
        """Stop following."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        await asyncio.to_thread(self.store.database.close)

    # -- what is in force -------------------------------------------------------------------------

    def current(self, policy: str) -> Version:
        """The version in force. Raises PolicyNotFound."""
        return current_version(self._current, policy)

    def is_current(self, version: Version) -> bool:
        """Whether a version is the last one of its policy."""
        last = self._current.get(version.change.policy)
        return last is not None and last.number == version.number

    def tried(self, policy: str, settings: Settings) -> Config:
        """The configuration with other settings of a policy, which nothing is admitted under.

        Raises InvalidPolicy.
        """
        policies = {**in_force(self._file, self._current), policy: settings}
        return self._adapted(self._file.with_policies(policies, policy))

    def require_possible(self, policy: str, settings: Settings) -> Settings:
        """Settings of a policy in their one spelling, checked as `change` does. Raises
        InvalidPolicy."""
        _, change = self._checked_change(Change(policy, "put", settings, ""))
        assert change.settings is not None
        return change.settings

    def _adapted(self, config: Config) -> Config:
        """What this server takes of a configuration: the rest is as it was started."""
        return self._start.model_copy(update={"policies": config.policies})

    # -- changes ----------------------------------------------------------------------------------

    async def change(
        self,
        policy: str,
        act: Act,
        settings: Settings | None,
        *,
        by: str,
        why: str,
        expected: int | None = None,
    ) -> Version:
        """Change a policy, or remove it (`settings` None), once all of it is checked.

        `expected` is the number of the version that must be in force. Raises InvalidPolicy,
        PolicyNotFound, PolicyChanged and DatabaseUnavailable; nothing has changed then.
        """
        async with self.live.changing:
            for _ in range(ATTEMPTS):
                last = self._current.get(policy)
                if expected is not None and expected != (last.number if last else 0):
                    raise PolicyChanged(
                        f"The version of {policy[:130]!r} is {last.number if last else 0}, not "
                        f"{expected}: look what has changed."
                    )
                try:
                    return await self._append(Change(policy, act, settings, by, why))
                except PolicyChanged:
                    await self._catch_up()
            raise PolicyChanged("Others change policies all the time: try again later.")

    async def _append(self, change: Change) -> Version:
        config, change = await asyncio.to_thread(self._checked_change, change)
        put = await self.live.prepare(config)
        (version,) = await asyncio.to_thread(self.store.append, [change], self._revision)
        # it is a fact by now: nothing may fail before it is in force
        put()
        self._take(version.revision, {**self._current, change.policy: version})
        await asyncio.to_thread(self._note, [version])
        return version

    def _checked_change(self, change: Change) -> tuple[Config, Change]:
        config, change = checked_change(self._file, self._current, change)
        config = self._adapted(config)
        self._check(config, change.policy)
        return config, change

    def _checked(self, policies: Mapping[str, Settings], changed: Sequence[str]) -> Config:
        last = changed[-1] if changed else ""
        config = self._adapted(self._file.with_policies(policies, last))
        for policy in changed:
            self._check(config, policy)
        return config

    # -- following --------------------------------------------------------------------------------

    async def _follow(self) -> None:
        was_offline = False
        while True:
            await asyncio.sleep(self._settings.refresh_s)
            try:
                async with self.live.changing:
                    if self._settings.watch_file:
                        await self._follow_file()
                    await self._catch_up()
            except DatabaseUnavailable as error:
                if not was_offline:
                    logger.error("%s; the policies that were read from it hold on", error)
                was_offline = True
            except Exception:
                logger.exception("the policies could not be read again")
            else:
                if was_offline:
                    logger.error("the database of policies answers again")
                was_offline = False

    async def _catch_up(self) -> None:
        """Put in force what the store says by now; where that does not hold here, nothing."""
        if await asyncio.to_thread(self.store.revision) == self._revision:
            return
        revision, current = await asyncio.to_thread(self._read)
        # also those that were refused before: they must not come in behind another change
        changed = [name for name, each in current.items() if self._current.get(name) != each]
        policies = in_force(self._file, current)
        try:
            config = await asyncio.to_thread(self._checked, policies, changed)
        except GuardError as error:
            self._refuse("store", f"the policies of revision {revision}", error)
            self._revision = revision
            return
        await self.live.change(config)
        self._take(revision, current)

    async def _follow_file(self) -> None:
        stamp = await asyncio.to_thread(stamp_of, self._file.path)
        was_changing, self._last_stamp = stamp != self._last_stamp, stamp
        if stamp == self._seen or was_changing:
            return  # half of a file must not be read
        try:
            file = await asyncio.to_thread(self._file.reread)
            before, self._file = self._file, file
            try:
                # under the store's policies too, of which the file may name one
                added = await asyncio.to_thread(self._add_edits)
            except BaseException:
                self._file = before
                raise
        except PolicyChanged:
            return  # of several servers with this file another one was quicker: once more
        except (ConfigError, InvalidPolicy) as error:
            self._refuse("file", f"{self._file.path} as it is now", error)
        else:
            await asyncio.to_thread(self._note, added)
        self._seen = stamp

    def _add_edits(self) -> Sequence[Version]:
        """Make versions of what was edited in the file, once all of it is checked."""
        revision, current = self._read()
        config, changes = checked_edits(self._file, current, self.store.of_file())
        for change in changes if self._revision >= 0 else ():
            self._check(self._adapted(config), change.policy)
        return self.store.append(changes, revision) if changes else []

    def _read(self) -> tuple[int, Mapping[str, Version]]:
        current = self.store.current()
        return max((each.revision for each in current.values()), default=0), current

    def _take(self, revision: int, current: Mapping[str, Version]) -> None:
        self._revision, self._current = revision, current
        if self._metrics is not None:
            self._metrics.set_revision(revision)

    def _refuse(self, source: str, what: str, error: GuardError) -> None:
        logger.error("%s cannot be put in force, the policies before hold on: %s", what, error)
        if self._metrics is not None:
            self._metrics.count_refusal(source)

    def _note(self, versions: Sequence[Version]) -> None:
        for version in versions:
            if self._metrics is not None:
                self._metrics.count_change(version.change)
            try:
                append_line(self._audit, version)
            except OSError as error:
                logger.error("the audit log lacks the line of a changed policy: %s", error)
                self._audit_failed()
