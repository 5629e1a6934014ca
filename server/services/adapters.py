"""LoRA adapters as models of their own: each a view of the service of the model that it changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from guard.config.adapter_schema import AdapterConfig
from guard.plans.adapters import usable
from server.services.interface import LanguageModelInfo, RowEvents, TextRowRequest
from server.services.text import BatchedTextService
from server.services.tools.offered import OfferedTools
from steering.prompt import Prompt


class AdapterService:
    """A TextService whose rows run in the batch of `base`, each with the adapter.

    It gives no embeddings: those of the model are the model's.
    """

    def __init__(self, adapter: AdapterConfig, base: BatchedTextService) -> None:
        self._adapter, self._base = adapter, base

    @property
    def info(self) -> LanguageModelInfo:
        base = self._base.info
        return replace(
            base,
            name=self._adapter.name,
            parent=base.name,
            policies=usable(self._base.plans, self._adapter),
            capabilities=tuple(each for each in base.capabilities if each != "embeddings"),
            embedding_width=None,
        )

    def ready(self) -> bool:
        return self._base.ready()

    def queued(self) -> int:
        return self._base.queued_for(self._adapter.name)

    def close(self) -> None:
        """Nothing: the model's service ends its rows."""

    def encode_chat(
        self,
        messages: Sequence[dict[str, Any]],
        tools: OfferedTools | None = None,
        *,
        by_turn: bool = False,
    ) -> Prompt:
        return self._base.encode_chat(messages, tools, by_turn=by_turn)

    def encode(self, text: str) -> Prompt:
        return self._base.encode(text)

    async def prepare(self, requests: Sequence[TextRowRequest]) -> None:
        await self._base.prepare(requests)

    def submit(self, requests: Sequence[TextRowRequest]) -> Sequence[RowEvents]:
        name = self._adapter.name
        return self._base.submit([replace(request, adapter=name) for request in requests])
