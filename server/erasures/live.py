"""The guards of erasures in the configuration, and in the services that run."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence

from guard.config.schema import Config, GuardConfig
from guard.errors import ArtifactError
from guard.plans.language import LanguagePlans
from server.erasures.record import LIVE, Record
from server.erasures.store import Store
from server.services.interface import Service
from server.services.text import BatchedTextService

logger = logging.getLogger(__name__)


class LiveGuards:
    """The configuration of a server with the guards of erasures, which `apply` brings into the
    services of its language models. Used from one event loop, but for `apply_now`."""

    def __init__(self, config: Config, services: Mapping[str, Service], store: Store) -> None:
        self._base, self._store = config, store
        self._services = {
            name: service
            for name, service in services.items()
            if isinstance(service, BatchedTextService)
        }
        self.config = config
        """With the guards of all erasures that requests carry."""

    @property
    def models(self) -> Sequence[str]:
        """The models that can forget."""
        return [*self._services]

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
        self.config = self._with(live)

    async def apply(self, records: Iterable[Record], changed: Record) -> None:
        """Let requests to the model of `changed` carry the guards of `records` from now on.

        Raises ArtifactError where those of `changed` do not fit the served model; nothing has
        changed then.
        """
        live, model = _live(records), changed.asked.model
        if (service := self._services.get(model)) is not None:
            plans = await asyncio.to_thread(self._plans, service, model, live)
            for guard in changed.guards:
                if reason := plans.broken.get(guard):
                    raise ArtifactError(reason)
            await asyncio.wrap_future(await asyncio.to_thread(service.use, plans))
        self.config = self._with(live)

    def _plans(
        self, service: BatchedTextService, model: str, live: Sequence[Record]
    ) -> LanguagePlans:
        own = [record for record in live if record.asked.model == model]
        return LanguagePlans(self._with(own), service.plans.served, name=model)

    def _with(self, live: Sequence[Record]) -> Config:
        """The file's configuration, and the guards of these erasures behind those of their
        policies."""
        guards, policies = list(self._base.guards), dict(self._base.policies)
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
        return self._base.model_copy(update=update)


def _live(records: Iterable[Record]) -> list[Record]:
    return [record for record in records if record.state in LIVE]
