"""Erasures of a running server: fitted one after the other, in shadow, in force, withdrawn.

All methods are called on the event loop, but `load`, which is called before, and `count`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence

from guard.audit import AuditLog
from guard.certificate import EVENT, Asked, Certificate, Fired, State
from guard.config.schema import Config
from guard.errors import GuardError, TooManyRequests
from guard.verdict import Verdict
from server.erasures import worker
from server.erasures.counting import Firings
from server.erasures.errors import Conflict, UnknownErasure
from server.erasures.job import Job
from server.erasures.lists import ALONE, ListChanged, file_of, gone, require_other_entries
from server.erasures.live import LiveGuards
from server.erasures.record import ENDED, LIVE, UNFINISHED, Live, Record, now
from server.erasures.store import Store, document_of, new_id
from server.erasures.worker import Progress
from server.policies.live import LiveConfiguration
from server.services.interface import Service

logger = logging.getLogger(__name__)

SAVE_EVERY_S = 30.0
"""Between two times at which counts are kept."""
MOST, MOST_STEPS = 10_000, 1000
"""Records in one folder, and states of one."""
ATTEMPTS = 4
"""Of a fit that a server leaves behind, before it is given up: it may be what ends the server."""


class Erasures:
    """The erasures in `store` over the `services` of `config`; changes go into the `audit` log.

    `live` is where they are put in force, `command` that of the process which fits.
    """

    def __init__(
        self,
        config: Config,
        services: Mapping[str, Service],
        store: Store,
        audit: AuditLog | None,
        *,
        audit_failed: Callable[[], None] = lambda: None,
        live: LiveConfiguration | None = None,
        command: Sequence[str] = worker.COMMAND,
    ) -> None:
        self._models = {model.name: model for model in config.models}
        self._queue_limit = config.erasures.queue_limit
        self._store, self._audit, self._audit_failed = store, audit, audit_failed
        self.live = live or LiveConfiguration(config, services.values())
        self._live = LiveGuards(self.live, services, store)
        self._firings = Firings(config)
        self._command = command
        self._records: dict[str, Record] = {}
        self._progress: dict[str, Progress] = {}
        self._waiting: asyncio.Queue[str] = asyncio.Queue()
        self._fitting: tuple[str, asyncio.Task[worker.Result]] | None = None
        self._changed = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self.stopped = False

    @property
    def config(self) -> Config:
        """The configuration with the guards that requests carry now."""
        return self._live.config

    @property
    def models(self) -> Sequence[str]:
        """The models that can forget."""
        return self._live.models

    def entries(self, model: str) -> Mapping[str, Sequence[str]]:
        """The suppression lists of a model, and the ids on each."""
        return self._live.entries(model)

    # -- the life of the server -------------------------------------------------------------------

    def load(self) -> None:
        """Read all records and let requests carry the guards of those in shadow or in force."""
        self._records = {record.id: record for record in self._store.load()}
        for record in self._records.values():
            self._firings.follow(record)
        self._live.apply_now(self._records.values())

    async def start(self) -> None:
        """Begin to fit; what was not finished is fitted anew."""
        self.settle()
        for record in [*self._records.values()]:
            if record.state not in UNFINISHED:
                continue
            if record.attempts < ATTEMPTS:
                self._queue(record)
            else:
                await self._fail(
                    record.id, f"the server ended {ATTEMPTS} times while it was fitted"
                )
        self._tasks = [asyncio.create_task(self._work()), asyncio.create_task(self._keep_counts())]

    def settle(self) -> None:
        """Withdraw entries that somebody has taken off their lists in another way."""
        for record in [*self._records.values()]:
            if reason := gone(record, self.config, self.entries(record.asked.model)):
                self._keep(record.entering("withdrawn", reason))

    def stop(self) -> None:
        """The server is about to stop: streams of events end, and so does the fit."""
        if self.stopped:
            return
        self.stopped = True
        for task in self._tasks:
            task.cancel()
        self._notify()

    async def close(self) -> None:
        """End everything and keep the counts."""
        self.stop()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._save_counts()
        self._store.close()

    # -- requests ---------------------------------------------------------------------------------

    async def create(self, asked: Asked, documents: Sequence[str]) -> Record:
        """Queue an erasure. Raises TooManyRequests, and Conflict for an entry that is under way."""
        waiting = [each for each in self._records.values() if each.state in UNFINISHED]
        require_other_entries(asked, waiting)
        if len(waiting) > self._queue_limit:
            raise TooManyRequests(
                f"{len(waiting)} erasures are waiting already: try again when one is done",
                retry_after=60.0,
            )
        if len(self._records) >= MOST:
            raise TooManyRequests(
                f"this folder has {MOST} erasures: have the operator start another one",
                retry_after=3600.0,
            )
        asked = asked.model_copy(update={"documents": tuple(map(document_of, documents))})
        first = {"state": "collecting", "time": now()}
        record = Record.model_validate({"id": new_id(), "asked": asked, "history": [first]})
        self._records[record.id] = record
        try:
            await asyncio.to_thread(self._store.create, record, documents)
        except OSError as error:
            del self._records[record.id]
            raise GuardError(f"the erasure cannot be kept: {error.strerror}") from error
        self._certify(record)
        self._queue(record)
        return record

    def get(self, erasure: str) -> Record:
        """Raises UnknownErasure."""
        try:
            return self._records[erasure]
        except KeyError:
            raise UnknownErasure(f"There is no erasure {erasure[:80]!r}.") from None

    def newest(self) -> list[Record]:
        """All of them, the newest first."""
        return [*reversed(self._records.values())]

    def progress(self, erasure: str) -> Progress | None:
        """None where nothing is being done for it."""
        return self._progress.get(erasure)

    def fired(self, record: Record) -> Mapping[Live, Fired]:
        """How often it has fired so far."""
        counted = self._firings.of(record.id)
        return record.fired if counted is None else counted

    def certificate(self, erasure: str) -> Certificate:
        """A certificate of how things are now. Raises UnknownErasure."""
        return self._certify(self.get(erasure))

    async def enter(self, erasure: str, state: Live) -> Record:
        """Move an erasure between shadow and in force. Raises UnknownErasure and Conflict."""
        async with self.live.changing:
            record = self.get(erasure)
            if record.state not in LIVE:
                raise Conflict(
                    f"The erasure is {record.state}; one in shadow or in force can be moved."
                )
            if record.asked.list is not None and state == "shadow":
                raise Conflict(f"The erasure is of a list, and {ALONE}.", param="state")
            if len(record.history) >= MOST_STEPS:
                raise Conflict("The erasure has had too many states: ask for a new one.")
            return record if record.state == state else await self._apply(record.entering(state))

    async def withdraw(self, erasure: str) -> Record:
        """Take the guards of an erasure out of all policies, or end its fit; the record stays.

        Raises UnknownErasure.
        """
        if self.get(erasure).state in UNFINISHED and self._fitting is not None:
            fitted, task = self._fitting
            if fitted == erasure:
                task.cancel()
                await asyncio.wait([task])
        async with self.live.changing:
            record = self.get(erasure)
            if record.state == "withdrawn":
                return record
            self._progress.pop(erasure, None)
            return await self._apply(record.entering("withdrawn"))

    @property
    def changed(self) -> asyncio.Event:
        """Set at the next change of a state, or of the progress of a fit."""
        return self._changed

    def count(self, verdict: Verdict) -> None:
        """Count a recorded verdict; from any thread."""
        self._firings.count(verdict)

    # -- the fits ---------------------------------------------------------------------------------

    def _queue(self, record: Record) -> None:
        self._progress[record.id] = Progress()
        self._waiting.put_nowait(record.id)

    async def _work(self) -> None:
        while True:
            erasure = await self._waiting.get()
            if self._records[erasure].state in UNFINISHED:
                await self._fit_or_fail(erasure)
            self._progress.pop(erasure, None)
            self._notify()

    async def _fit_or_fail(self, erasure: str) -> None:
        try:
            await self._fit(self._records[erasure])
        except Exception:
            logger.exception("the erasure %s failed", erasure)
            try:
                await self._fail(erasure, "the server failed on it; its log has the reason")
            except OSError as error:  # a full disk; the next one may do
                logger.error("the erasure %s cannot be kept: %s", erasure, error)

    async def _fit(self, record: Record) -> None:
        asked = record.asked
        if (model := self._models.get(asked.model)) is None or asked.model not in self.models:
            await self._fail(record.id, f"there is no model {asked.model!r} here that can forget")
            return
        if record.state != "collecting":
            await self._enter_unfinished(record.id, "collecting")
        self._attempt(record.id, 1)
        try:
            list_file = file_of(self.config, asked.list) if asked.list else None
        except Conflict as error:
            await self._fail(record.id, error.message)
            return
        job = Job.of(record, self._store.of(record.id), model, list_file)

        def listen(said: Mapping[str, object]) -> None:
            self._hear(record.id, said)

        task = asyncio.create_task(worker.run(job, listen, self._command))
        self._fitting = record.id, task
        try:
            result = await task
        except worker.FitFailed as error:
            await self._fail(record.id, str(error))
            return
        except asyncio.CancelledError:
            if not self.stopped:
                return  # it was withdrawn
            self._attempt(record.id, -1)
            raise
        finally:
            self._fitting = None
        await self._finish(record.id, result)

    def _attempt(self, erasure: str, more: int) -> None:
        record = self._records[erasure]
        counted = record.model_copy(update={"attempts": record.attempts + more})
        self._store.save(counted)
        self._records[erasure] = counted

    def _hear(self, erasure: str, said: Mapping[str, object]) -> None:
        record = self._records[erasure]
        if said.get("state") == "fitting" and record.state == "collecting":
            self._keep(record.entering("fitting"))
        elif isinstance(stage := said.get("stage"), str):
            done, total = said.get("done"), said.get("total")
            assert isinstance(done, int) and isinstance(total, int)
            self._progress[erasure] = Progress(stage, done, total)
        self._notify()

    async def _finish(self, erasure: str, result: worker.Result) -> None:
        async with self.live.changing:
            record = self.get(erasure)
            if record.state not in UNFINISHED:
                return
            fitted = record.model_copy(update=dict(result))
            if fitted.listed:
                # before its list changes: whatever ends the server, the entry is known as its own
                self._store.save(fitted)
            self._records[erasure] = fitted
            unlisted = fitted.model_copy(update={"listed": None})
            try:
                await self._apply(fitted.entering(record.asked.start))
            except ListChanged:
                # by now, somebody else's entry may have the same id
                self._records[erasure] = record.model_copy(update={"listed": None})
                self._store.save(self._records[erasure])
                self._waiting.put_nowait(erasure)
            except GuardError as error:
                self._keep(unlisted.entering("failed", error.message))
            except OSError as error:
                reason = f"the erasure cannot be kept: {error.strerror}"
                # requests may carry it by now
                ended = fitted.entering("failed", reason)
                await self._live.apply({**self._records, erasure: ended}.values(), ended)
                self._records[erasure] = unlisted
                self._keep(unlisted.entering("failed", reason))

    async def _fail(self, erasure: str, reason: str) -> None:
        await self._enter_unfinished(erasure, "failed", reason)

    async def _enter_unfinished(self, erasure: str, state: State, reason: str = "") -> None:
        async with self.live.changing:
            record = self.get(erasure)
            if record.state in UNFINISHED:
                self._keep(record.entering(state, reason))

    # -- states and certificates ------------------------------------------------------------------

    async def _apply(self, record: Record) -> Record:
        """Let requests carry the guards that the record's state says, then keep the record."""
        records = {**self._records, record.id: record}
        if record.gates or record.listed:
            self._firings.follow(record)
            try:
                record = await self._live.apply(records.values(), record)
            except BaseException:
                self._firings.follow(self._records[record.id])
                raise
        return self._keep(record)

    def _keep(self, record: Record) -> Record:
        record = record.model_copy(update={"fired": dict(self.fired(record))})
        self._store.save(record)
        self._records[record.id] = record
        if record.state in ENDED:
            self._store.remove_fit(record)
        self._certify(record)
        self._notify()
        return record

    def _certify(self, record: Record) -> Certificate:
        """Issue a certificate, unless the last one says the same; the audit log has each."""
        certificate = record.certificate(self.fired(record))
        last = self._store.certificate(record.id)
        if last is not None and last.says_the_same(certificate):
            return last
        if self._audit is not None:
            try:
                self._audit.append_event(
                    EVENT,
                    erasure=record.id,
                    state=record.state,
                    certificate=certificate.digest,
                )
            except OSError as error:
                self._audit_failed()
                logger.error("the audit log lost a line of the erasure %s: %s", record.id, error)
        self._store.save_certificate(certificate)
        return certificate

    async def _keep_counts(self) -> None:
        while True:
            await asyncio.sleep(SAVE_EVERY_S)
            self._save_counts()

    def _save_counts(self) -> None:
        for record in [*self._records.values()]:
            fired = dict(self.fired(record))
            if fired != record.fired:
                kept = record.model_copy(update={"fired": fired})
                self._records[record.id] = kept
                try:
                    self._store.save(kept)
                except OSError as error:
                    logger.error("the counts of %s cannot be kept: %s", record.id, error)

    def _notify(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
