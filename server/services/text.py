"""A served language model on the transformers engine: requests join and leave one running batch.

One thread owns the engine. Between two decode steps waiting rows join, or a part of one long prompt
is read; every new token is passed to its row, and rows end at stop strings, token limits,
cancellation and guard failures.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from typing import Any

from guard.config.adapter_schema import AdapterConfig
from guard.errors import ArtifactError
from guard.plans.adapters import require_allowed
from guard.plans.language import LanguagePlan, LanguagePlans
from guard.verdict import Verdict
from server.services.constraints import ConstraintCompiler, unmatched
from server.services.embedding import Places, embedded, embedding_plan
from server.services.following import FollowsPolicies
from server.services.interface import (
    EmbeddedTexts,
    EmbeddingRequest,
    LanguageModelInfo,
    RowEvents,
    TextRowRequest,
)
from server.services.loop import EngineLoop, engine_failed, guard_failed
from server.services.prompts import PromptEncoder
from server.services.text_embeddings import EmbeddingBatches
from server.services.text_rows import TextRow, TokenText
from server.services.tools.offered import OfferedTools
from steering.engines.transformers.embeddings import StateEmbedder
from steering.engines.transformers.engine import RowStart, TransformersEngine
from steering.engines.transformers.rewinding import HeldAnswer, Sentences, step_of
from steering.engines.transformers.row_tokens import RowToken
from steering.engines.transformers.sampling import RowSampling
from steering.hidden.bank import HiddenBank
from steering.methods.stacking import MethodGuard, stacks
from steering.prompt import Prompt

logger = logging.getLogger(__name__)

Record = Callable[[TextRowRequest | EmbeddingRequest, Verdict], None]


class BatchedTextService(
    FollowsPolicies[LanguagePlans, LanguageModelInfo], EngineLoop[TextRow, TransformersEngine]
):
    """A TextService over a TransformersEngine. Built on any thread, used from one event loop.

    `prefill_tokens` bounds the prompt tokens of one forward, padding included, for which running
    rows wait. A longer prompt is read in parts, one prompt at a time; in turn with its parts other
    prompts join, and running rows go on after each.
    """

    def __init__(
        self,
        info: LanguageModelInfo,
        encoder: PromptEncoder,
        engine: TransformersEngine,
        plans: LanguagePlans,
        constraints: ConstraintCompiler,
        *,
        end_tokens: frozenset[int],
        prefill_tokens: int,
        queue_limit: int,
        record: Record,
        embedder: StateEmbedder | None = None,
        adapters: Sequence[AdapterConfig] = (),
    ) -> None:
        """`embedder` None: no embeddings. `adapters` are those of the engine."""
        super().__init__(info.name, engine, queue_limit=queue_limit, record=record)
        self.info = info
        self._encoder = encoder
        self._sentences = Sentences(encoder.tokenizer)
        self._plans = plans
        self._constraints = constraints
        self._stacked: Mapping[str, MethodGuard] = plans.guards
        """The guards of the engine's bank: those of the plans, and those that rows admitted before
        carry."""
        self._end_tokens = end_tokens
        self._prefill_tokens = prefill_tokens
        self._embeddings = (
            None if embedder is None else EmbeddingBatches(embedder, tokens=prefill_tokens)
        )
        self._places = Places(queue_limit)
        self._adapters = {adapter.name: adapter for adapter in adapters}
        self._last_client = ""
        """Whose long prompt was read last."""
        self._thread.start()

    # -- called from the event loop -------------------------------------------------------------

    def encode_chat(
        self,
        messages: Sequence[dict[str, Any]],
        tools: OfferedTools | None = None,
        *,
        by_turn: bool = False,
    ) -> Prompt:
        return self._encoder.chat(messages, tools, by_turn=by_turn)

    def encode(self, text: str) -> Prompt:
        return self._encoder.text(text)

    async def prepare(self, requests: Sequence[TextRowRequest]) -> None:
        await self._constraints.prepare(requests)

    def submit(self, requests: Sequence[TextRowRequest]) -> Sequence[RowEvents]:
        loop = asyncio.get_running_loop()
        # under the lock: the plans of these rows are those of the bank until the rows are queued
        with self._wake:
            rows = [self._row(request, self._admit(request), loop) for request in requests]
            self._enqueue(rows)
        return [row.events for row in rows]

    def queued(self) -> int:
        return self.queued_for(None)

    def queued_for(self, adapter: str | None) -> int:
        """Number of rows with this adapter that wait for a place in the batch."""
        with self._wake:
            return sum(row.request.adapter == adapter for row in self._waiting)

    async def embed(self, request: EmbeddingRequest) -> EmbeddedTexts:
        """As `EmbeddingService.embed`."""
        assert self._embeddings is not None
        plan = embedding_plan(self._plans, request, self.info.name)
        with self._places.take():
            texts = await asyncio.to_thread(self._encoder.tokens, request.inputs)
            work = self._embeddings.embed(texts, self._between_steps)
            return await embedded(plan, request, self.info.name, self._record, work)

    @property
    def plans(self) -> LanguagePlans:
        """The plans of requests that are admitted now."""
        return self._plans

    def use(self, plans: LanguagePlans) -> Future[None]:
        """Admit requests under `plans` from the engine's next step on.

        Rows that were admitted before keep their guards. Called from any thread, which does the
        stacking, one call at a time.

        Raises ArtifactError where the file of a guard in use is no longer the one that was loaded;
        a suppression list may have grown, or lost entries.
        """
        changed = [
            name
            for name, digest in self._plans.digests.items()
            if name in plans.broken
            or (
                plans.digests.get(name, digest) != digest and not plans.continues(name, self._plans)
            )
        ]
        if changed:
            raise ArtifactError(
                f"the artifacts of {', '.join(changed)} have changed since they were loaded: put "
                "them back, or restart the server to use them as they are now"
            )
        stacked = {**self._stacked, **plans.guards}
        device = plans.bank.device
        bank = HiddenBank(stacks([*stacked.values()], str(device)), device)
        return self._between_steps(partial(self._swap, plans, stacked, bank))

    def _row(
        self, request: TextRowRequest, plan: LanguagePlan, loop: asyncio.AbstractEventLoop
    ) -> TextRow:
        text = TokenText(self._encoder.tokenizer, request.sampling.stop, request.shown)
        held = None
        if request.sampling.constraint is None:  # half a form is none
            held = HeldAnswer.under(
                plan, self._sentences, request.prompt, streamed=request.streamed
            )
        return TextRow(
            request,
            plan,
            loop,
            text,
            self._cancel,
            end_tokens=self._end_tokens,
            grammar=self._constraints.grammar(request),
            held=held,
        )

    def _admit(self, request: TextRowRequest) -> LanguagePlan:
        """The plan of the request's policy. Raises where this model cannot run the request."""
        plan = self._plans.admitted(request.policy, request.config)
        plan.require_fit(self.info.name)
        if request.adapter is not None:
            require_allowed(plan, self._adapters[request.adapter], self.info.name)
        self._encoder.check(request.prompt, request.sampling.max_tokens)
        self._encoder.check_options(request.sampling.options)
        return plan

    # -- the engine's thread --------------------------------------------------------------------

    def _swap(
        self, plans: LanguagePlans, stacked: Mapping[str, MethodGuard], bank: HiddenBank
    ) -> None:
        with self._wake:
            self._engine.rebank(bank)
            self._plans, self._stacked = plans, stacked
            self.info = replace(self.info, policies=plans.usable)

    def _settle(self) -> None:
        """Let go of guards that no plan has any more, once no row carries them."""
        if len(self._stacked) == len(self._plans.guards):
            return
        with self._wake:
            carried = {guard.name for row in self._open for guard in row.plan.guards}
            if carried <= self._plans.guards.keys():
                self._engine.rebank(self._plans.bank)
                self._stacked = self._plans.guards

    def _choose(self, waiting: Iterable[TextRow], free: int) -> list[TextRow]:
        if self._entering and self._joined:
            return []  # it is the turn of the prompt that is being read
        joining: list[TextRow] = []
        longest = 0
        for row in waiting:
            if len(joining) == free:
                break
            if self._is_long(row):
                if self._entering:
                    continue  # shorter prompts need not wait for the one that is being read
                return joining or [self._next_long(waiting)]
            longest = max(longest, len(row.request.prompt))
            if longest * (len(joining) + 1) > self._prefill_tokens:
                break
            joining.append(row)
        return joining

    def _next_long(self, waiting: Iterable[TextRow]) -> TextRow:
        """The long prompt that is read next: of another client than the last one, if any waits."""
        long = [row for row in waiting if self._is_long(row)]
        return next((row for row in long if _client(row) != self._last_client), long[0])

    def _is_long(self, row: TextRow) -> bool:
        return len(row.request.prompt) > self._prefill_tokens

    def _join(self, joining: list[TextRow]) -> None:
        if self._is_long(joining[0]):
            self._engine.begin(_start(joining[0]))
            self._entering, self._last_client = joining, _client(joining[0])
            return
        first = len(self._running)
        tokens = self._engine.prefill([_start(row) for row in joining])
        self._running.extend(joining)
        self._distribute(first, tokens)

    def _advance(self) -> None:
        if self._entering and self._entering[0].cancelled:
            self._engine.abandon()
            self._end(self._entering.pop())
        if self._entering and not self._joined:
            self._read_on()
        if self._running:
            self._distribute(0, self._engine.decode())

    def _read_on(self) -> None:
        token = self._engine.read(self._prefill_tokens)
        if token is not None:
            self._running.append(self._entering.pop())
            self._distribute(len(self._running) - 1, [token])

    def _distribute(self, first: int, tokens: Sequence[RowToken]) -> None:
        """Pass new tokens to the rows from `first` on, then remove the rows that have ended."""
        joined = self._running[first:]
        for index, (row, token) in enumerate(zip(joined, tokens, strict=True), first):
            self._deliver(index, row, token)
        self._leave([i for i, row in enumerate(self._running) if row.over])

    def _deliver(self, index: int, row: TextRow, token: RowToken) -> None:
        plan = row.plan
        if token.flags.invalid and plan.on_error == "closed":
            row.error = guard_failed()
            return
        if token.unmatched:
            row.error = unmatched(row.request)
            return
        row.gates.read(token)
        step = step_of(plan, token, partial(self._engine.readings, index))
        try:
            if step == "block":
                row.reason = "content_filter"
            elif step == "say":
                row.say(token)
            elif step == "back" and row.held is not None:
                back = row.go_back(row.held, token)
                self._engine.rewind(index, back.withdrawn, back.last)
            else:
                row.push(token)
        except Exception:  # an error in one row's text must not fail the batch
            logger.exception("no text for request %s", row.request.request_id)
            row.error = engine_failed()

    def _served_as(self, row: TextRow) -> str:
        return row.request.adapter or self._name

    def _keep_readings(self, index: int) -> None:
        super()._keep_readings(index)
        row = self._running[index]
        if row.is_stuck:
            row.readings = {
                name: replace(reading, stuck=reading.rewinds > 0)
                for name, reading in row.readings.items()
            }


def _client(row: TextRow) -> str:
    """The tenant of a row, or, on an open server, its HTTP request."""
    return row.request.tenant or row.request.request_id.partition("/")[0]


def _start(row: TextRow) -> RowStart:
    sampling = row.request.sampling
    seed = secrets.randbits(62) if sampling.seed is None else sampling.seed
    return RowStart(
        prompt=row.request.prompt,
        guards=row.plan.rows(),
        sampling=RowSampling(
            sampling.temperature,
            sampling.top_p,
            seed,
            sampling.top_logprobs,
            ends=tuple(row.end_tokens),
            grammar=row.grammar,
            **sampling.options.logit_options(),
        ),
        adapter=row.request.adapter,
        debug=row.request.debug,
    )
