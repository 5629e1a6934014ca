"""The guards of erasures in the configuration, and in the services that run."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

from guard.artifact import Artifact
from guard.config.schema import Config, GuardConfig
from guard.errors import ArtifactError
from guard.plans.language import LanguagePlans
from server.erasures.lists import configured, file_of, put, take_off
from server.erasures.record import LIVE, Record
from server.erasures.store import Store
from server.policies.live import LiveConfiguration
from server.services.interface import Service
from server.services.text import BatchedTextService

logger = logging.getLogger(__name__)


class LiveGuards:
    """The configuration of a server with the guards of erasures, which `apply` brings into the
    services of its language models. Used from one event loop, but for `apply_now`."""

    def __init__(
        self, live: LiveConfiguration, services: Mapping[str, Service], store: Store
    ) -> None:
        self._live, self._store = live, store
        self._services = {
            name: service
            for name, service in services.items()
            if isinstance(service, BatchedTextService)
        }

    @property
    def config(self) -> Config:
        """With the guards of all erasures that requests carry."""
        return self._live.config

    @property
    def models(self) -> Sequence[str]:
        """The models that can forget."""
        return [*self._services]

    def entries(self, model: str) -> Mapping[str, Sequence[str]]:
        """The suppression lists that requests to a model carry, and the ids on each."""
        return self._services[model].plans.entries if model in self._services else {}

    def apply_now(self, records: Iterable[Record]) -> None:
        """As `apply` at the start of a server: a guard that cannot be applied breaks its policies,
        as one of the file does."""
        live = _live(records)
        for model in {record.asked.model for record in live}:
            if model not in self._services:
                logger.error("there is no model %s any more, of which erasures are in force", model)
                continue
            service = self._services[model]
            plans = self._plans(service, model, live)
            service.use(plans).result()
        self._live.overlay = partial(self._with, live)
        self._live.set(self._live.base)

    async def apply(self, records: Iterable[Record], changed: Record) -> Record:
        """Let requests to the model of `changed`, and to all that have its list, carry the guards
        of `records`, and lists as their files are, from now on.

        The entry of `changed` gets on its list, or off it, before; a list that is not configured
        any more stays as it is. Raises ArtifactError where the guards do not fit a served model,
        and ListChanged; nothing has changed then.
        """
        name = changed.asked.list
        base = self._live.base
        if name is None or (changed.state not in LIVE and not configured(base, name)):
            await self._carry(records, changed)
            return changed
        path = file_of(base, name)
        earlier, changed = await asyncio.to_thread(self._change_list, path, changed)
        try:
            await self._carry(records, changed)
        except BaseException:
            if earlier is not None:
                await asyncio.shield(asyncio.to_thread(earlier.save, path))
            raise
        return changed

    def _change_list(self, path: Path, record: Record) -> tuple[Artifact | None, Record]:
        """Change the file of a list; the list before, where it was another one."""
        listed = record.listed
        assert listed is not None
        if record.state in LIVE:
            return put(path, self._store.of(record.id), listed.added), record
        if taken := take_off(path, listed.entry):
            earlier, removed = taken
            more = {"listed": listed.model_copy(update={"removed": removed})}
            return earlier, record.model_copy(update=more)
        if record.history[-2].state in LIVE:
            return None, record
        return None, record.model_copy(update={"listed": None})

    async def _carry(self, records: Iterable[Record], changed: Record) -> None:
        live, listed = _live(records), changed.asked.list
        models = [name for name in self.models if name == changed.asked.model]
        if listed is not None:
            models += [n for n in self.models if n not in models and listed in self.entries(n)]
        services = [self._services[model] for model in models]
        plans = [
            await asyncio.to_thread(self._plans, service, model, live)
            for service, model in zip(services, models, strict=True)
        ]
        for guard in (*changed.guards, listed) if listed else changed.guards:
            for each in plans:
                if reason := each.broken.get(guard):
                    raise ArtifactError(reason)
        earlier = [(service, service.plans) for service in services]
        used = 0
        try:
            for service, each in zip(services, plans, strict=True):
                await asyncio.wrap_future(await asyncio.to_thread(service.use, each))
                used += 1
        except BaseException:
            for service, before in earlier[:used]:
                await asyncio.shield(asyncio.to_thread(service.use, before))
            raise
        self._live.overlay = partial(self._with, live)
        await self._live.change(self._live.base)

    def _plans(
        self, service: BatchedTextService, model: str, live: Sequence[Record]
    ) -> LanguagePlans:
        own = [record for record in live if record.asked.model == model]
        config = self._with(own, self._live.base)
        return LanguagePlans(config, service.plans.served, name=model)

    def _with(self, live: Sequence[Record], base: Config) -> Config:
        """The configuration `base`, and the guards of these erasures behind those of their
        policies."""
        guards, policies = list(base.guards), dict(base.policies)
        for record in live:
            guards += [
                GuardConfig(
                    name=each.gate.guard,
                    artifact=self._store.artifact(record.id, each.file),
                    shadow=record.state == "shadow",
                )
                for each in record.gates
            ]
            for name in record.asked.policies:
                if (policy := policies.get(name)) is None:
                    logger.error("there is no policy %s any more, for which %s is", name, record.id)
                    continue
                more = (*policy.guards, *record.guards)
                policies[name] = policy.model_copy(update={"guards": more})
        update = {"guards": tuple(guards), "policies": policies}
        return base.model_copy(update=update)


def _live(records: Iterable[Record]) -> list[Record]:
    return [record for record in records if record.state in LIVE]
