"""Policies of a running server: changed by administrators, by the file, and by other servers.

Versions are in a store; what it says last is in force. All methods are called on the event loop,
but `open`, which is called before.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

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
from guard.policies.changing import checked_change, current_version
from guard.policies.effective import PolicyFile, edits, in_force
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
    """The policies of `live`, whose versions are in `store`.

    `adapt` makes of a configuration what this server takes of it, `check` refuses what cannot act
    here.
    """

    def __init__(
        self,
        live: LiveConfiguration,
        store: VersionStore,
        path: Path,
        *,
        adapt: Callable[[Config], Config] = lambda config: config,
        check: Check = lambda config, name: None,
        audit: AuditLog | None = None,
        audit_failed: Callable[[], None] = lambda: None,
        metrics: PolicyMetrics | None = None,
    ) -> None:
        self.live, self.store = live, store
        self._file = PolicyFile(path)
        self._settings = self._file.config.live_policies
        self._seen = self._last_stamp = _stamp(path)
        self._adapt, self._check = adapt, check
        self._audit, self._audit_failed = audit, audit_failed
        self._metrics = metrics
        self._current: Mapping[str, Version] = {}
        self._revision = -1
        """That of what is in force; of a change that is refused here too."""
        self._task: asyncio.Task[None] | None = None

    # -- the life of the server -------------------------------------------------------------------

    def open(self) -> None:
        """Put in force what the store says. Raises GuardError, also where that does not hold."""
        for attempt in range(ATTEMPTS):
            try:
                self._note(self._add_edits())
                break
            except PolicyChanged:
                # servers with the same file that start together: one of them was quicker
                if attempt == ATTEMPTS - 1:
                    raise
        revision, current = self._read()
        try:
            config = self._file.with_policies(in_force(self._file, current))
        except InvalidPolicy as error:
            raise GuardError(
                f"the policies in the database of [live_policies] do not go with "
                f"{self._file.path}: {error.message}; change the file, or a policy with `guard "
                "policy put`"
            ) from error
        self.live.set(self._adapt(config))
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
        return self._adapt(self._file.with_policies(policies, policy))

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
        (version,) = await asyncio.to_thread(self.store.append, [change], self._revision)
        # it is a fact by now, and the client's going away must not keep it from being in force
        await asyncio.shield(self._put(config, version))
        return version

    async def _put(self, config: Config, version: Version) -> None:
        await self.live.change(config)
        self._take(version.revision, {**self._current, version.change.policy: version})
        await asyncio.to_thread(self._note, [version])

    def _checked_change(self, change: Change) -> tuple[Config, Change]:
        config, change = checked_change(self._file, self._current, change)
        config = self._adapt(config)
        self._check(config, change.policy)
        return config, change

    def _checked(self, policies: Mapping[str, Settings], changed: str) -> Config:
        config = self._adapt(self._file.with_policies(policies, changed))
        self._check(config, changed)
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
        last = max(current.values(), key=lambda version: version.revision)
        policies = in_force(self._file, current)
        try:
            config = await asyncio.to_thread(self._checked, policies, last.change.policy)
        except GuardError as error:
            self._refuse("store", f"the policies of revision {revision}", error)
            self._revision = revision
            return
        await self.live.change(config)
        self._take(revision, current)

    async def _follow_file(self) -> None:
        stamp = await asyncio.to_thread(_stamp, self._file.path)
        was_changing, self._last_stamp = stamp != self._last_stamp, stamp
        if stamp == self._seen or was_changing:
            return  # half of a file must not be read
        try:
            file = await asyncio.to_thread(self._file.reread)
            before, self._file = self._file, file
            try:
                # under the store's policies too, of which the file may name one
                made = await asyncio.to_thread(self._add_edits)
                await asyncio.to_thread(self._note, made)
            except BaseException:
                self._file = before
                raise
        except PolicyChanged:
            return  # of several servers with this file another one was quicker: once more
        except (ConfigError, InvalidPolicy) as error:
            self._refuse("file", f"{self._file.path} as it is now", error)
        self._seen = stamp

    def _add_edits(self) -> Sequence[Version]:
        """Make versions of what was edited in the file, once all of it is checked."""
        revision, current = self._read()
        changes = edits(self._file, self.store.of_file())
        if not changes:
            return []
        wanted = in_force(self._file, current)
        for change in changes:
            if change.settings is None:
                wanted.pop(change.policy, None)
            else:
                wanted[change.policy] = change.settings
        config = self._adapt(self._file.with_policies(wanted, changes[0].policy))
        for change in changes if self._revision >= 0 else ():
            self._check(config, change.policy)
        return self.store.append(changes, revision)

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


def _stamp(path: Path) -> tuple[int, ...]:
    """What tells whether a file is another one; none of its own where it is missing."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_mtime_ns, found.st_size, found.st_ino
