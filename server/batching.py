"""A served language model: requests join and leave one running batch.

One thread owns the engine. It admits waiting rows between two decode steps, hands every new token
to its request's events, and ends rows at stop strings, limits, hang-ups and guard faults.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Sequence
from typing import Any

from guard.errors import ContextExceeded, RequestError, UnknownPolicy
from guard.plan import Plan, Plans
from guard.verdict import Verdict
from server.loop import EngineLoop, engine_failed, guard_failed
from server.rows import Row, TokenText
from server.service import GenerationRequest, LanguageInfo, RowEvents
from steering.engines.sampling import RowSampling
from steering.engines.transformers import RowStart, RowToken, TransformersEngine

logger = logging.getLogger(__name__)

Record = Callable[[GenerationRequest, Verdict], None]

PREFILL_TOKENS = 4096
"""Prompt tokens that join in one step, padding included: running rows wait no longer than that."""


class BatchingService(EngineLoop[Row, TransformersEngine]):
    """A TextService over a TransformersEngine. Built on any thread, used from one event loop.

    `vocabulary` is the number of token ids that the model takes.
    """

    def __init__(
        self,
        info: LanguageInfo,
        tokenizer: Any,
        engine: TransformersEngine,
        plans: Plans,
        *,
        vocabulary: int,
        end_tokens: frozenset[int],
        queue_limit: int,
        record: Record,
    ) -> None:
        super().__init__(info.name, engine, queue_limit=queue_limit, record=record)
        self.info = info
        self._tokenizer = tokenizer
        self._plans = plans
        self._vocabulary = vocabulary
        self._end_tokens = end_tokens
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
        self._take(rows)
        return [row.events for row in rows]

    def _admit(self, request: GenerationRequest) -> Plan:
        """The plan of a request that this model can run."""
        try:
            plan = self._plans[request.policy]
        except KeyError:
            raise UnknownPolicy(f"there is no policy {request.policy!r}", param="policy") from None
        plan.require_fit(self.info.name)
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

    # -- the engine's thread --------------------------------------------------------------------

    def _fits(self, joining: Sequence[Row], row: Row) -> bool:
        widest = max(len(each.request.prompt) for each in (*joining, row))
        return widest * (len(joining) + 1) <= PREFILL_TOKENS

    def _join(self, joining: list[Row]) -> None:
        first = len(self._running)
        tokens = self._engine.prefill([_start(row) for row in joining])
        self._running.extend(joining)
        self._hand_out(first, tokens)

    def _advance(self) -> None:
        self._hand_out(0, self._engine.decode())

    def _hand_out(self, first: int, tokens: Sequence[RowToken]) -> None:
        """Hand out new tokens, then let the rows leave that have ended."""
        for row, token in zip(self._running[first:], tokens, strict=True):
            self._deliver(row, token)
        self._leave([i for i, row in enumerate(self._running) if row.over])

    def _deliver(self, row: Row, token: RowToken) -> None:
        plan = row.plan
        if token.invalid and plan.on_error == "closed":
            row.error = guard_failed()
        elif token.fired and plan.action == "block":
            row.reason = "content_filter"
        else:
            try:
                row.push(token, ends=token.token in self._end_tokens)
            except Exception:  # a fault in one row's text is no fault of the batch
                logger.exception("no text for request %s", row.request.request_id)
                row.error = engine_failed()


def _start(row: Row) -> RowStart:
    sampling = row.request.sampling
    seed = secrets.randbits(62) if sampling.seed is None else sampling.seed
    return RowStart(
        prompt=row.request.prompt,
        guards=row.plan.rows(),
        sampling=RowSampling(sampling.temperature, sampling.top_p, seed, sampling.top_logprobs),
    )
