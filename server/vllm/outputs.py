"""vLLM's outputs: what workers tell of a request becomes its verdict, once, however it ends.

The verdict is `guard` of each completion and of the output; audit log and metrics have it, too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import wraps
from typing import Any

from vllm.outputs import RequestOutput
from vllm.v1.engine import FinishReason
from vllm.v1.engine.output_processor import OutputProcessor, RequestState

from guard.plans.revision import RevisionEntry
from guard.verdict import Verdict
from steering.engines.vllm.runner import PLAN
from steering.engines.vllm.scheduler import ENDED, TOLD
from steering.hidden.rows import Reading

Record = Callable[[Verdict], None]

_entries: dict[str, RevisionEntry] = {}
"""By key: the policies that requests in this process may have."""


def expect(entries: Collection[RevisionEntry], forget: Collection[str] = ()) -> None:
    """From now on requests of these policies may come, and none with the keys to forget."""
    for key in forget:
        _entries.pop(key, None)
    _entries.update({entry.key: entry for entry in entries})


class TrackedRequest:
    """What becomes of one request."""

    def __init__(self, entry: RevisionEntry, request_id: str, record: Record) -> None:
        self.key = entry.key
        self.seen: Sequence[Sequence[Any]] | None = None
        """Of each guard of its plan: score, threshold, position and whether that is valid."""
        self.ended = False
        """Whether its guards have ended it."""
        self.verdict: Verdict | None = None
        self._entry, self._id, self._record = entry, request_id, record
        self._started = time.monotonic()

    def close(self, *, failed: bool = False) -> None:
        """Make the verdict, once. `failed`: the engine has, or nobody has told of the guards."""
        if self.verdict is not None:
            return
        plan = self._entry.plan
        names = [guard.name for guard in plan.guards]
        readings = dict(zip(names, (Reading(*own) for own in self.seen or ()), strict=False))
        verdict = plan.verdict(
            readings,
            request_id=self._id,
            model=self._entry.model,
            elapsed_ms=(time.monotonic() - self._started) * 1000,
        )
        self.verdict = replace(verdict, outcome="error") if failed else verdict
        self._record(self.verdict)

    def end(self, reason: FinishReason) -> None:
        """The request has ended in the engine, or because its client is gone."""
        unread = self.seen is None and bool(self._entry.plan.guards)
        self.close(failed=reason == FinishReason.ERROR or unread and reason != FinishReason.ABORT)


def surround(record: Record) -> None:
    """Let vLLM's outputs carry verdicts, and `record` have each of them."""
    began = vars(RequestState)["from_new_request"].__func__
    whole, one = RequestState.make_request_output, RequestState._new_completion_output
    merged = RequestOutput.add
    aborted, failed = OutputProcessor.abort_requests, OutputProcessor.propagate_error

    def from_new_request(cls: Any, /, *args: Any, request: Any, **kwargs: Any) -> Any:
        state = began(cls, *args, request=request, **kwargs)
        if (params := request.sampling_params) is not None:
            entry = _entries.get((params.extra_args or {}).get(PLAN, ""))
            if entry is None:
                raise ValueError("a request that this front end has not made cannot be guarded")
            parent, name = kwargs.get("parent_req"), request.external_req_id
            if parent is not None:
                name = f"{parent.external_req_id}/{kwargs.get('request_index', 0)}"
            state.watched = TrackedRequest(entry, name, record)
        return state

    @wraps(whole)
    def make_request_output(
        self: Any,
        new_token_ids: Any,
        pooling_output: Any,
        finish_reason: Any,
        stop_reason: Any,
        kv_transfer_params: Any = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        watched: TrackedRequest | None = getattr(self, "watched", None)
        rest = dict(kv_transfer_params or {})
        told, ended = rest.pop(TOLD, None), rest.pop(ENDED, False)
        if watched is not None:
            watched.seen = watched.seen if told is None else told
            watched.ended = watched.ended or ended
            if finish_reason is not None:
                watched.end(finish_reason)
        result = whole(
            *(self, new_token_ids, pooling_output, finish_reason, stop_reason, rest or None),
            *args,
            **kwargs,
        )
        if result is not None and watched is not None:
            _tell(result)
        return result

    @wraps(one)
    def _new_completion_output(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = one(self, *args, **kwargs)
        watched: TrackedRequest | None = getattr(self, "watched", None)
        if watched is not None and watched.verdict is not None:
            result.guard = watched.verdict.as_dict()
            if watched.ended:
                result.finish_reason = "content_filter"
        return result

    @wraps(merged)
    def add(self: Any, next_output: Any, *args: Any, **kwargs: Any) -> None:
        # outputs that nobody has fetched yet become one
        merged(self, next_output, *args, **kwargs)
        told = {each.index: getattr(each, "guard", None) for each in next_output.outputs}
        for each in self.outputs:
            if (verdict := told.get(each.index)) is not None:
                each.guard = verdict
        _tell(self)

    @wraps(aborted)
    def abort_requests(self: Any, *args: Any, **kwargs: Any) -> Any:
        running = dict(self.request_states)
        gone = aborted(self, *args, **kwargs)
        for name in gone:
            if (watched := getattr(running.get(name), "watched", None)) is not None:
                watched.close()
        return gone

    @wraps(failed)
    def propagate_error(self: Any, *args: Any, **kwargs: Any) -> Any:
        for state in self.request_states.values():
            if (watched := getattr(state, "watched", None)) is not None:
                watched.close(failed=True)
        return failed(self, *args, **kwargs)

    RequestState.from_new_request = classmethod(from_new_request)
    RequestState.make_request_output = make_request_output
    RequestState._new_completion_output = _new_completion_output
    RequestOutput.add = add
    OutputProcessor.abort_requests = abort_requests
    OutputProcessor.propagate_error = propagate_error


def _tell(output: Any) -> None:
    """The verdict of an output's completion, or those of all of them."""
    guards = [getattr(each, "guard", None) for each in output.outputs]
    output.guard = guards[0] if len(guards) == 1 else guards
