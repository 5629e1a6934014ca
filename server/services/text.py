"""A served language model on the transformers engine: requests join and leave one running batch.

One thread owns the engine. Between two decode steps waiting rows join; every new token is passed to
its row, and rows end at stop strings, token limits, cancellation and guard failures.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Sequence
from typing import Any

from guard.errors import UnknownPolicy
from guard.plans.language import LanguagePlan, LanguagePlans
from guard.verdict import Verdict
from server.services.interface import LanguageModelInfo, RowEvents, TextRowRequest
from server.services.loop import EngineLoop, engine_failed, guard_failed
from server.services.prompts import PromptEncoder
from server.services.text_rows import TextRow, TokenText
from steering.engines.transformers.engine import RowStart, RowToken, TransformersEngine
from steering.engines.transformers.sampling import RowSampling
from steering.prompt import Prompt

logger = logging.getLogger(__name__)

Record = Callable[[TextRowRequest, Verdict], None]

PREFILL_TOKENS = 4096
"""The most prompt tokens of a prefill, padding included: running rows wait for it."""


class BatchedTextService(EngineLoop[TextRow, TransformersEngine]):
    """A TextService over a TransformersEngine. Built on any thread, used from one event loop."""

    def __init__(
        self,
        info: LanguageModelInfo,
        encoder: PromptEncoder,
        engine: TransformersEngine,
        plans: LanguagePlans,
        *,
        end_tokens: frozenset[int],
        queue_limit: int,
        record: Record,
    ) -> None:
        super().__init__(info.name, engine, queue_limit=queue_limit, record=record)
        self.info = info
        self._encoder = encoder
        self._plans = plans
        self._end_tokens = end_tokens
        self._thread.start()

    # -- called from the event loop -------------------------------------------------------------

    def encode_chat(self, messages: Sequence[dict[str, Any]]) -> Prompt:
        return self._encoder.chat(messages)

    def encode(self, text: str) -> Prompt:
        return self._encoder.text(text)

    def submit(self, requests: Sequence[TextRowRequest]) -> Sequence[RowEvents]:
        loop = asyncio.get_running_loop()
        rows = [
            TextRow(
                request,
                self._admit(request),
                loop,
                TokenText(self._encoder.tokenizer, request.sampling.stop),
                self._cancel,
            )
            for request in requests
        ]
        self._enqueue(rows)
        return [row.events for row in rows]

    def _admit(self, request: TextRowRequest) -> LanguagePlan:
        """The plan of the request's policy. Raises where this model cannot run the request."""
        try:
            plan = self._plans[request.policy]
        except KeyError:
            raise UnknownPolicy(f"there is no policy {request.policy!r}", param="policy") from None
        plan.require_fit(self.info.name)
        self._encoder.check(request.prompt, request.sampling.max_tokens)
        return plan

    # -- the engine's thread --------------------------------------------------------------------

    def _fits(self, joining: Sequence[TextRow], row: TextRow) -> bool:
        longest = max(len(other.request.prompt) for other in (*joining, row))
        return longest * (len(joining) + 1) <= PREFILL_TOKENS

    def _join(self, joining: list[TextRow]) -> None:
        first = len(self._running)
        tokens = self._engine.prefill([_start(row) for row in joining])
        self._running.extend(joining)
        self._distribute(first, tokens)

    def _advance(self) -> None:
        self._distribute(0, self._engine.decode())

    def _distribute(self, first: int, tokens: Sequence[RowToken]) -> None:
        """Pass new tokens to the rows from `first` on, then remove the rows that have ended."""
        for row, token in zip(self._running[first:], tokens, strict=True):
            self._deliver(row, token)
        self._leave([i for i, row in enumerate(self._running) if row.over])

    def _deliver(self, row: TextRow, token: RowToken) -> None:
        plan = row.plan
        if token.invalid and plan.on_error == "closed":
            row.error = guard_failed()
        elif token.fired and plan.action == "block":
            row.reason = "content_filter"
        else:
            try:
                row.push(token, ends=token.token in self._end_tokens)
            except Exception:  # an error in one row's text must not fail the batch
                logger.exception("no text for request %s", row.request.request_id)
                row.error = engine_failed()


def _start(row: TextRow) -> RowStart:
    sampling = row.request.sampling
    seed = secrets.randbits(62) if sampling.seed is None else sampling.seed
    return RowStart(
        prompt=row.request.prompt,
        guards=row.plan.rows(),
        sampling=RowSampling(sampling.temperature, sampling.top_p, seed, sampling.top_logprobs),
    )
