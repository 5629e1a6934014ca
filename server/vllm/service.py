"""A language model that vLLM runs behind `guard serve`: `engine = "vllm"`.

vLLM batches and generates, the plugin guards. Text, stop strings and the delay of a blocking guard
are the same as with the other engine (`server/services/text_rows.py`).
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
from server.services.constraints import refuse_constraints
from server.services.interface import LanguageModelInfo, RowEvents, TextRowRequest
from server.services.loop import engine_failed, guard_failed, queue_full, settle, stopped
from server.services.prompts import PromptEncoder, require_text
from server.services.text_rows import TextRow, TokenText
from server.services.tools.offered import OfferedTools
from steering.engines.transformers.row_tokens import RowToken
from steering.prompt import Prompt

logger = logging.getLogger(__name__)


class VllmService:
    """A TextService over an `AsyncLLM`; the plugin passes verdicts to `keep_verdict`."""

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
        """`capacity` is the most rows that run at once, `queue_limit` the most that wait."""
        self.info = info
        self._encoder, self._engine = encoder, engine
        self._end_tokens, self._record = end_tokens, record
        self._capacity, self._queue_limit = capacity, queue_limit
        self._open: dict[TextRow, asyncio.Task[None]] = {}
        self._verdicts: dict[str, Verdict] = {}
        """By vLLM's request id: of requests that have ended in vLLM and not yet here."""
        self._stopped = False

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

    def ready(self) -> bool:
        return not (self._stopped or self._engine.errored)

    def queued(self) -> int:
        return sum(not row.started for row in self._open)

    def keep_verdict(self, verdict: Verdict) -> None:
        """Keep the verdict of a request that has ended in vLLM until its row ends here."""
        self._verdicts[verdict.request_id] = verdict

    async def prepare(self, requests: Sequence[TextRowRequest]) -> None:
        refuse_constraints(requests)

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
            raise queue_full(self.queued(), self._capacity)
        for row in rows:
            self._open[row] = task = loop.create_task(self._run(row))
            # a task that is cancelled before it starts runs none of its code, not even `finally`
            task.add_done_callback(partial(self._on_done, row))
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
        # images are not passed on to this engine: none may be dropped silently
        require_text(request.prompt)
        self._encoder.check(request.prompt, request.sampling.max_tokens)
        self._encoder.check_options(request.sampling.options)
        text = TokenText(self._encoder.tokenizer, request.sampling.stop, request.shown)
        return TextRow(request, entry.plan, loop, text, self._cancel, end_tokens=self._end_tokens)

    async def _run(self, row: TextRow) -> None:
        """Pass the row's tokens from vLLM to the row until it is over or cancelled."""
        # rows of one HTTP request may have the same id, and vLLM's internal ids are unpredictable
        name = f"{row.request.request_id}#{secrets.token_hex(8)}"
        try:
            generation = self._engine.generate(
                tokens_input(list(row.request.prompt.tokens)), self._sampling(row), name
            )
            async with aclosing(generation) as outputs:
                async for output in outputs:
                    self._push(row, output)
                    if row.over:
                        break
            if not row.over or name not in self._verdicts:
                # without a verdict it is unknown whether the row was guarded
                row.error = engine_failed()
        except asyncio.CancelledError:
            pass  # cancelled or closed; closing `generation` has aborted the request in vLLM
        except Exception:
            logger.exception("vLLM failed on request %s", row.request.request_id)
            row.error = engine_failed()
        finally:
            self._end(row, self._verdicts.pop(name, None))

    def _sampling(self, row: TextRow) -> Sampling:
        sampling, options = row.request.sampling, row.request.sampling.options
        return Sampling(
            # one more where the last token waits for the forward in which a guard reads it
            max_tokens=sampling.max_tokens + row.lags,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=sampling.seed,
            logprobs=sampling.top_logprobs,
            ignore_eos=options.ignore_eos,
            stop_token_ids=sorted(row.end_tokens),
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
            extra_args={POLICY: row.request.policy},
            **options.logit_options() | {"logit_bias": dict(options.logit_bias) or None},
        )

    def _push(self, row: TextRow, output: Any) -> None:
        (completion,) = output.outputs
        for index, token in enumerate(completion.token_ids):
            if not row.over:
                logprobs = completion.logprobs[index] if completion.logprobs else None
                count = row.request.sampling.top_logprobs or 0
                row.push(_token(token, logprobs, count))
        if completion.finish_reason == "content_filter" and not row.over:
            row.reason = "content_filter"

    def _cancel(self, row: TextRow) -> None:
        if (task := self._open.get(row)) is not None:
            task.cancel()

    def _on_done(self, row: TextRow, _task: asyncio.Task[None]) -> None:
        self._end(row)

    def _end(self, row: TextRow, verdict: Verdict | None = None) -> None:
        self._open.pop(row, None)
        if row.ended:
            return
        row.ended = True
        verdict = verdict or _empty_verdict(row, self.info.name)
        if verdict.outcome == "error" and row.plan.on_error == "closed" and row.error is None:
            row.error = guard_failed()
        verdict = replace(verdict, request_id=row.request.request_id)
        settle(row, verdict, self._record)


def _token(token: int, logprobs: Any, count: int) -> RowToken:
    """A token with its log-probability and those of the `count` likeliest tokens.

    `logprobs` are vLLM's `Logprob` objects of this position by token id, None where the request
    wants none.
    """
    if logprobs is None:
        return RowToken(token)
    ranked = sorted(logprobs.items(), key=lambda item: item[1].rank)[:count]
    top = tuple((other, entry.logprob) for other, entry in ranked)
    return RowToken(token, logprobs[token].logprob, top)


def _empty_verdict(row: TextRow, model: str) -> Verdict:
    """The verdict of a row that has not run in vLLM."""
    elapsed_ms = (time.monotonic() - row.arrived) * 1000
    return row.plan.verdict({}, request_id="", model=model, elapsed_ms=elapsed_ms)
