"""A served language model: requests join and leave one running batch.

One thread owns the engine. It admits waiting rows between two decode steps, hands every new token
to its request's events, and ends rows at stop strings, limits, hang-ups and guard faults.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from guard.errors import (
    ContextExceeded,
    GuardFailed,
    RequestError,
    ServiceStopped,
    TooManyRequests,
    UnknownPolicy,
)
from guard.plan import Plan, Plans
from guard.verdict import Verdict
from server.errors import EngineFailed
from server.rows import Row, TokenText
from server.service import GenerationRequest, ModelInfo, RowEvents
from steering.engines.sampling import RowSampling
from steering.engines.transformers import RowStart, RowToken, TransformersEngine
from steering.table import Reading

logger = logging.getLogger(__name__)

Record = Callable[[GenerationRequest, Verdict], None]

PREFILL_TOKENS = 4096
"""Prompt tokens that join in one step, padding included: running rows wait no longer than that."""

CLOSE_S = 30.0
"""How long `close` waits for the step under way; a device that hangs must not hang the server."""


class BatchingService:
    """A Service over a TransformersEngine. Built on any thread, used from one event loop.

    `vocabulary` is the number of token ids that the model takes.
    """

    def __init__(
        self,
        info: ModelInfo,
        tokenizer: Any,
        engine: TransformersEngine,
        plans: Plans,
        *,
        vocabulary: int,
        end_tokens: frozenset[int],
        queue_limit: int,
        record: Record,
    ) -> None:
        self.info = info
        self._tokenizer = tokenizer
        self._engine = engine
        self._plans = plans
        self._vocabulary = vocabulary
        self._end_tokens = end_tokens
        self._queue_limit = queue_limit
        self._record = record
        self._running: list[Row] = []
        """Row i of the engine; the engine's thread alone looks at it."""
        self._wake = threading.Condition()
        # under _wake:
        self._waiting: deque[Row] = deque()
        self._open: set[Row] = set()
        """Every row that was admitted and has not ended."""
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name=f"engine {info.name}", daemon=True)
        self._thread.start()

    # -- called from the event loop -------------------------------------------------------------

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
        return tuple(self._tokenizer(text, add_special_tokens=False, verbose=False).input_ids)

    def encode(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokenizer(text, verbose=False).input_ids)

    def submit(self, requests: Sequence[GenerationRequest]) -> Sequence[RowEvents]:
        loop = asyncio.get_running_loop()
        rows = [
            Row(
                request,
                self._admit(request),
                loop,
                TokenText(self._tokenizer, request.sampling.stop),
                self._hang_up,
            )
            for request in requests
        ]
        for row in rows:
            if row.plan.refuses:
                self._fail(row, _guard_failed())
        if refused := [row.error for row in rows if row.error]:
            raise refused[0]
        with self._wake:
            if self._stopped:
                raise ServiceStopped("the server is stopping: try again in a moment")
            if len(self._open) + len(rows) > self._queue_limit + self._engine.capacity:
                raise TooManyRequests(
                    f"{len(self._waiting)} requests are waiting already: try again later",
                    retry_after=1.0 + len(self._waiting) / self._engine.capacity,
                )
            self._waiting.extend(rows)
            self._open.update(rows)
            self._wake.notify()
        return [row.events for row in rows]

    def ready(self) -> bool:
        return not self._stopped

    def queued(self) -> int:
        return len(self._waiting)

    def close(self) -> None:
        with self._wake:
            self._stopped = True
            self._wake.notify()
        self._thread.join(CLOSE_S)
        if self._thread.is_alive():
            logger.error("model %s did not end its step within %g s", self.info.name, CLOSE_S)
        else:
            self._engine.close()

    def _admit(self, request: GenerationRequest) -> Plan:
        """The plan of a request that this model can run."""
        try:
            plan = self._plans[request.policy]
        except KeyError:
            raise UnknownPolicy(f"there is no policy {request.policy!r}", param="policy") from None
        asked, limit = request.sampling.max_tokens, self.info.max_context
        if len(request.prompt) + asked > limit:
            raise ContextExceeded(
                f"this model's maximum context length is {limit} tokens, but "
                f"{len(request.prompt)} in the prompt and {asked} in max_tokens were asked for: "
                "shorten one of them"
            )
        if not all(0 <= token < self._vocabulary for token in request.prompt):
            # past the embedding's end a GPU does not raise: it takes the whole process down
            last = self._vocabulary - 1
            raise RequestError(f"token ids must lie in 0..{last}", param="prompt")
        return plan

    def _hang_up(self, row: Row) -> None:
        with self._wake:
            row.cancelled = True
            if waits := row in self._waiting:
                self._waiting.remove(row)
            self._wake.notify()
        if waits:
            self._end(row, {})

    # -- the engine's thread --------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while (joining := self._joining()) is not None:
                self._serve(joining)
            for index, row in enumerate(self._running):
                self._fail(row, _stopped(), self._engine.readings(index))
        except Exception:
            logger.exception("the engine of model %s has died", self.info.name)
        finally:
            with self._wake:
                self._stopped = True
                left = [*self._running, *self._waiting]
                self._waiting.clear()
            for row in left:
                if not row.ended:
                    self._fail(row, _stopped())
            self._running = []

    def _joining(self) -> list[Row] | None:
        """Waits for work. Rows that join now: as many as fit the batch and one prefill.

        None when the service stops.
        """
        joining: list[Row] = []
        widest = 0
        with self._wake:
            while not (self._waiting or self._running or self._stopped):
                self._wake.wait()
            if self._stopped:
                return None
            free = self._engine.capacity - len(self._running)
            while self._waiting and len(joining) < free:
                widest = max(widest, len(self._waiting[0].request.prompt))
                if joining and widest * (len(joining) + 1) > PREFILL_TOKENS:
                    break
                joining.append(self._waiting.popleft())
        return joining

    def _serve(self, joining: list[Row]) -> None:
        """One step. Where it fails the batch is lost, the service is not: others go on."""
        try:
            self._step(joining)
        except Exception:
            logger.exception("a step of model %s failed", self.info.name)
            lost = dict.fromkeys([*self._running, *joining])
            self._running = []
            for row in lost:
                if not row.ended:
                    self._fail(row, _engine_failed())
            self._engine.reset()

    def _step(self, joining: list[Row]) -> None:
        self._leave([i for i, row in enumerate(self._running) if row.cancelled])
        if joining:
            first = len(self._running)
            tokens = self._engine.prefill([_start(row) for row in joining])
            self._running.extend(joining)
            self._take(first, tokens)
        if self._running:
            self._take(0, self._engine.decode())

    def _take(self, first: int, tokens: Sequence[RowToken]) -> None:
        """Hand out new tokens, then let the rows leave that have ended."""
        for row, token in zip(self._running[first:], tokens, strict=True):
            self._deliver(row, token)
        self._leave([i for i, row in enumerate(self._running) if row.over])

    def _deliver(self, row: Row, token: RowToken) -> None:
        plan = row.plan
        if token.invalid and plan.on_error == "closed":
            row.error = _guard_failed()
        elif token.fired and plan.action == "block":
            row.reason = "content_filter"
        else:
            try:
                row.push(token, ends=token.token in self._end_tokens)
            except Exception:  # a fault in one row's text is no fault of the batch
                logger.exception("no text for request %s", row.request.request_id)
                row.error = _engine_failed()

    def _leave(self, indices: Sequence[int]) -> None:
        for index in indices:
            self._end(self._running[index], self._engine.readings(index))
        for source, target in self._engine.drop(indices):
            self._running[target] = self._running[source]
        del self._running[self._engine.rows :]

    # -- the end of a row, on either thread -----------------------------------------------------

    def _fail(
        self, row: Row, error: GuardFailed, readings: Mapping[str, Reading] | None = None
    ) -> None:
        row.error = error
        self._end(row, readings or {})

    def _end(self, row: Row, readings: Mapping[str, Reading]) -> None:
        row.ended = True
        verdict = row.plan.verdict(
            readings,
            request_id=row.request.request_id,
            model=self.info.name,
            elapsed_ms=(time.monotonic() - row.arrived) * 1000,
        )
        if row.error is not None:
            verdict = replace(verdict, outcome="error")
        with self._wake:
            self._open.discard(row)
        try:
            self._record(row.request, verdict)
        except Exception:  # the row ends all the same
            logger.exception("no record of request %s", row.request.request_id)
        row.finish(verdict)


def _start(row: Row) -> RowStart:
    sampling = row.request.sampling
    seed = secrets.randbits(62) if sampling.seed is None else sampling.seed
    return RowStart(
        prompt=row.request.prompt,
        guards=row.plan.rows(),
        sampling=RowSampling(sampling.temperature, sampling.top_p, seed, sampling.top_logprobs),
    )


def _guard_failed() -> GuardFailed:
    return GuardFailed("a guard of this policy could not be applied; its policy fails closed")


def _engine_failed() -> EngineFailed:
    return EngineFailed("the engine failed while it ran this request; the server's log has why")


def _stopped() -> ServiceStopped:
    return ServiceStopped("the server stopped before the answer was complete")
