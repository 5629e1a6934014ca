"""A language model that vLLM runs behind `guard serve`: `engine = "vllm"`.

vLLM batches and generates, the plugin guards; text, stop strings and what a blocking guard holds
back are those of every other row of this server (`server/services/text_rows.py`).
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from typing import Any

from vllm import SamplingParams as Sampling
from vllm.inputs import tokens_input
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM

from guard.config.vllm_plugin import POLICY
from guard.errors import ServiceStopped, UnknownPolicy
from guard.verdict import Verdict
from server.services.interface import LanguageModelInfo, RowEvents, TextRowRequest
from server.services.loop import engine_failed, guard_failed, overfull, settle, stopped
from server.services.prompts import PromptEncoder
from server.services.text_rows import TextRow, TokenText
from steering.engines.transformers.engine import RowToken
from steering.prompt import Prompt

logger = logging.getLogger(__name__)


class VllmService:
    """A TextService over an `AsyncLLM`; `took` takes the verdicts of its requests."""

    def __init__(
        self,
        info: LanguageModelInfo,
        encoder: PromptEncoder,
        engine: AsyncLLM,
        *,
        end_tokens: frozenset[int],
        capacity: int,
        queue_limit: int,
        record: Callable[[TextRowRequest, Verdict], None],
    ) -> None:
        """`capacity`: rows that run at once; `queue_limit`: rows that wait, at most."""
        self.info = info
        self._encoder, self._engine = encoder, engine
        self._end_tokens, self._record = end_tokens, record
        self._capacity, self._queue_limit = capacity, queue_limit
        self._open: dict[TextRow, asyncio.Task[None]] = {}
        self._verdicts: dict[str, Verdict] = {}
        """By vLLM's name of the request, of those that have ended there and not yet here."""
        self._stopped = False

    def encode_chat(self, messages: Sequence[dict[str, Any]]) -> Prompt:
        return self._encoder.chat(messages)

    def encode(self, text: str) -> Prompt:
        return self._encoder.text(text)

    def ready(self) -> bool:
        return not (self._stopped or self._engine.errored)

    def queued(self) -> int:
        return sum(not row.begun for row in self._open)

    def took(self, verdict: Verdict) -> None:
        """Keep the verdict of a request that has ended in vLLM."""
        self._verdicts[verdict.request_id] = verdict

    def submit(self, requests: Sequence[TextRowRequest]) -> Sequence[RowEvents]:
        if not self.ready():
            raise ServiceStopped("the server is stopping: try again in a moment")
        loop = asyncio.get_running_loop()
        rows = [self._row(request, loop) for request in requests]
        for row in rows:
            if row.plan.refuses:
                row.error = guard_failed()
                self._end(row)
        if refused := [row.error for row in rows if row.error]:
            raise refused[0]
        if len(self._open) + len(rows) > self._queue_limit + self._capacity:
            raise overfull(self.queued(), self._capacity)
        for row in rows:
            self._open[row] = task = loop.create_task(self._run(row))
            # one that is cancelled before it begins runs nothing of itself
            task.add_done_callback(partial(self._left, row))
        return [row.events for row in rows]

    def close(self) -> None:
        if self._stopped:
            return
        self._stopped = True
        for row, task in [*self._open.items()]:
            row.error = stopped()
            self._end(row)
            task.cancel()
        self._engine.shutdown()

    def _row(self, request: TextRowRequest, loop: asyncio.AbstractEventLoop) -> TextRow:
        entry = self._engine.input_processor.guard.entries.get(request.policy)
        if entry is None:
            raise UnknownPolicy(
                f"there is no policy {request.policy!r} for {self.info.name!r}", param="policy"
            )
        self._encoder.check(request.prompt, request.sampling.max_tokens)
        text = TokenText(self._encoder.tokenizer, request.sampling.stop)
        return TextRow(request, entry.plan, loop, text, self._hang_up)

    async def _run(self, row: TextRow) -> None:
        """Take the row's tokens from vLLM until it is over, or nobody reads."""
        # two rows of one name may run at once, and vLLM's own names are its secret
        name = f"{row.request.request_id}#{secrets.token_hex(8)}"
        try:
            asked = self._engine.generate(
                tokens_input(list(row.request.prompt.tokens)), self._sampling(row), name
            )
            async with aclosing(asked) as outputs:
                async for output in outputs:
                    self._take(row, output)
                    if row.over:
                        break
            if not row.over or name not in self._verdicts:
                # without a verdict nobody knows whether it was guarded
                row.error = engine_failed()
        except asyncio.CancelledError:
            pass  # hung up, or closed; vLLM was told on the way here
        except Exception:
            logger.exception("vLLM failed on request %s", row.request.request_id)
            row.error = engine_failed()
        finally:
            self._end(row, self._verdicts.pop(name, None))

    def _sampling(self, row: TextRow) -> Sampling:
        asked = row.request.sampling
        return Sampling(
            # one more, where the last one waits for the forward that looks at it
            max_tokens=asked.max_tokens + row.lags,
            temperature=asked.temperature,
            top_p=asked.top_p,
            seed=asked.seed,
            logprobs=asked.top_logprobs,
            stop_token_ids=sorted(self._end_tokens),
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
            extra_args={POLICY: row.request.policy},
        )

    def _take(self, row: TextRow, output: Any) -> None:
        (own,) = output.outputs
        for at, token in enumerate(own.token_ids):
            if not row.over:
                chosen = own.logprobs[at] if own.logprobs else None
                asked = row.request.sampling.top_logprobs or 0
                row.push(_token(token, chosen, asked), ends=token in self._end_tokens)
        if own.finish_reason == "content_filter" and not row.over:
            row.reason = "content_filter"

    def _hang_up(self, row: TextRow) -> None:
        if (task := self._open.get(row)) is not None:
            task.cancel()

    def _left(self, row: TextRow, _task: asyncio.Task[None]) -> None:
        self._end(row)

    def _end(self, row: TextRow, verdict: Verdict | None = None) -> None:
        self._open.pop(row, None)
        if row.ended:
            return
        row.ended = True
        verdict = verdict or _unread(row, self.info.name)
        if verdict.outcome == "error" and row.plan.on_error == "closed" and row.error is None:
            row.error = guard_failed()
        verdict = replace(verdict, request_id=row.request.request_id)
        settle(row, verdict, self._record)


def _token(token: int, chosen: Any, likeliest: int) -> RowToken:
    """A token with its log-probability and those of so many of the likeliest, as vLLM tells."""
    if chosen is None:
        return RowToken(token)
    ranked = sorted(chosen.items(), key=lambda own: own[1].rank)[:likeliest]
    top = tuple((other, about.logprob) for other, about in ranked)
    return RowToken(token, chosen[token].logprob, top)


def _unread(row: TextRow, model: str) -> Verdict:
    """Of a row that vLLM never had."""
    elapsed_ms = (time.monotonic() - row.arrived) * 1000
    return row.plan.verdict({}, request_id="", model=model, elapsed_ms=elapsed_ms)
