"""A served language model: requests join and leave one running batch.

One thread owns the engine. It admits waiting rows between two decode steps, hands every new token
to its request's stream, and ends rows at stop strings, limits, hang-ups and guard faults.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from guard.errors import (
    ContentBlocked,
    ContextExceeded,
    GuardError,
    GuardFailed,
    RequestError,
    ServiceStopped,
    TooManyRequests,
    UnknownPolicy,
)
from guard.plan import Plan, Plans
from guard.verdict import Verdict
from server.rows import Row, TokenText
from server.service import Finished, GenerationRequest, ModelInfo, TextDelta
from steering.engines.sampling import RowSampling
from steering.engines.transformers import RowStart, RowToken, TransformersEngine

logger = logging.getLogger(__name__)

Record = Callable[[GenerationRequest, Verdict], None]

PREFILL_TOKENS = 4096
"""Prompt tokens that join in one step, padding included: running rows wait no longer than that."""

_FAULT = "a guard of this policy could not be applied; its policy fails closed"


class BatchingService:
    """A Service over a TransformersEngine. Built on any thread, used from one event loop."""

    def __init__(
        self,
        info: ModelInfo,
        tokenizer: Any,
        engine: TransformersEngine,
        plans: Plans,
        *,
        end_tokens: frozenset[int],
        queue_limit: int,
        record: Record,
    ) -> None:
        self.info = info
        self._tokenizer = tokenizer
        self._engine = engine
        self._plans = plans
        self._end_tokens = end_tokens
        self._queue_limit = queue_limit
        self._record = record
        self._waiting: deque[Row] = deque()
        self._running: list[Row] = []
        self._wake = threading.Condition()
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name=f"engine {info.name}", daemon=True)
        self._thread.start()

    # -- called from the event loop ----------------------------------------------------------------

    def encode_chat(self, messages: Sequence[dict[str, Any]]) -> tuple[int, ...]:
        try:
            text = self._tokenizer.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=True
            )
        except Exception as error:  # templates are programs: they raise what they like
            reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
            raise RequestError(
                f"the model's chat template does not take these messages: {reason}",
                param="messages",
            ) from error
        return tuple(self._tokenizer(text, add_special_tokens=False).input_ids)

    def encode(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokenizer(text).input_ids)

    def submit(
        self, requests: Sequence[GenerationRequest]
    ) -> list[AsyncIterator[TextDelta | Finished]]:
        loop = asyncio.get_running_loop()
        rows = [self._row(request, loop) for request in requests]
        with self._wake:
            if self._stopped:
                raise ServiceStopped("the server is stopping: try again in a moment")
            if len(self._waiting) + len(rows) > self._queue_limit + self._free():
                raise TooManyRequests(
                    f"{len(self._waiting)} requests are waiting already: try again later",
                    retry_after=1.0 + len(self._waiting) / self._engine.capacity,
                )
            self._waiting.extend(rows)
            self._wake.notify()
        return [row.stream for row in rows]

    def ready(self) -> bool:
        return not self._stopped and self._thread.is_alive()

    def queued(self) -> int:
        return len(self._waiting)

    def close(self) -> None:
        with self._wake:
            self._stopped = True
            self._wake.notify()
        self._thread.join()
        self._engine.close()

    def _row(self, request: GenerationRequest, loop: asyncio.AbstractEventLoop) -> Row:
        try:
            plan = self._plans[request.policy]
        except KeyError:
            raise UnknownPolicy(f"there is no policy {request.policy!r}", param="policy") from None
        sampling, limit = request.sampling, self.info.max_context
        if len(request.prompt) + sampling.max_tokens > limit:
            raise ContextExceeded(
                f"this model's maximum context length is {limit} tokens, but "
                f"{len(request.prompt)} in the prompt and {sampling.max_tokens} in max_tokens "
                "were asked for: shorten one of them",
                param="messages",
            )
        size = len(self._tokenizer)
        if any(not 0 <= token < size for token in request.prompt):
            raise RequestError(f"token ids must lie in 0..{size - 1}", param="prompt")
        if plan.refuses:
            verdict = self._verdict(request, plan, time.monotonic())
            self._record(request, verdict)
            raise GuardFailed(_FAULT, verdict=verdict)
        return Row(request, plan, loop, TokenText(self._tokenizer, sampling.stop), self._poke)

    def _free(self) -> int:
        return self._engine.capacity - len(self._running)

    def _poke(self) -> None:
        """A client hung up: look at the rows even if nothing else happens."""
        with self._wake:
            self._wake.notify()

    # -- the engine's thread -------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._wake:
                while not (self._waiting or self._running or self._stopped):
                    self._wake.wait()
                if self._stopped:
                    break
                joining = self._joining()
            try:
                self._step(joining)
            except Exception:
                # the batch is lost, the service is not: whoever ran gets an error, others go on
                logger.exception("a step of model %s failed", self.info.name)
                failed = [*self._running, *(row for row in joining if row not in self._running)]
                self._running = []
                self._engine.reset()
                for row in failed:
                    self._fail(row, GuardFailed("the engine failed while it ran this request"))
        for row in (*self._running, *self._waiting):
            self._fail(row, ServiceStopped("the server stopped before the answer was complete"))
        self._running, self._waiting = [], deque()

    def _joining(self) -> list[Row]:
        """Waiting rows that join now: as many as fit the batch and one prefill."""
        joining: list[Row] = []
        widest = 0
        while self._waiting and len(joining) < self._free():
            row = self._waiting[0]
            widest = max(widest, len(row.request.prompt))
            if joining and widest * (len(joining) + 1) > PREFILL_TOKENS:
                break
            self._waiting.popleft()
            if row.cancelled:
                self._end(row, {}, None)
            else:
                joining.append(row)
        return joining

    def _step(self, joining: list[Row]) -> None:
        self._leave([i for i, row in enumerate(self._running) if row.cancelled])
        if joining:
            first = len(self._running)
            tokens = self._engine.prefill([self._start(row) for row in joining])
            self._running.extend(joining)
            self._take(first, tokens)
        if self._running:
            self._take(0, self._engine.decode())

    def _start(self, row: Row) -> RowStart:
        sampling = row.request.sampling
        seed = secrets.randbits(62) if sampling.seed is None else sampling.seed
        return RowStart(
            prompt=row.request.prompt,
            guards=row.plan.rows(),
            sampling=RowSampling(
                sampling.temperature, sampling.top_p, seed, sampling.top_logprobs
            ),
        )

    def _take(self, first: int, tokens: Sequence[RowToken]) -> None:
        """Hand out new tokens, then let the rows leave that have ended."""
        ended = []
        for index, token in enumerate(tokens, start=first):
            if self._deliver(self._running[index], index, token):
                ended.append(index)
        self._leave(ended)

    def _deliver(self, row: Row, index: int, token: RowToken) -> bool:
        """Give `row` its new token; True where the row has ended with it."""
        plan = row.plan
        if token.invalid and plan.on_error == "closed":
            row.error = GuardFailed(_FAULT)
        elif token.fired and plan.action == "block":
            row.reason = "content_filter"
            if not row.generated:
                row.error = ContentBlocked
        else:
            row.push(token, ends=token.token in self._end_tokens)
        return row.reason is not None or row.error is not None

    def _leave(self, indices: Sequence[int]) -> None:
        for index in indices:
            self._end(self._running[index], self._engine.readings(index), None)
        for source, target in self._engine.drop(indices):
            self._running[target] = self._running[source]
        del self._running[self._engine.rows :]

    def _fail(self, row: Row, error: GuardError) -> None:
        row.error = error
        self._end(row, {}, error)

    def _end(self, row: Row, readings: Any, _error: GuardError | None) -> None:
        verdict = row.plan.verdict(
            readings,
            request_id=row.request.request_id,
            model=self.info.name,
            elapsed_ms=(time.monotonic() - row.arrived) * 1000,
        )
        self._record(row.request, verdict)
        row.finish(verdict)

    def _verdict(self, request: GenerationRequest, plan: Plan, arrived: float) -> Verdict:
        return plan.verdict(
            {},
            request_id=request.request_id,
            model=self.info.name,
            elapsed_ms=(time.monotonic() - arrived) * 1000,
        )
