"""vLLM's outputs: the readings of a request's guards become its one verdict, however it ends.

The verdict is the attribute `guard` of each completion and of the output; it is recorded, too.
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
from server.vllm.http.call import current_call
from steering.engines.vllm.runners.guarded import PLAN
from steering.engines.vllm.scheduler import ENDED, READINGS
from steering.hidden.rows import Reading

Record = Callable[[Verdict, str], None]
"""Takes a verdict, and the id under which the screens of its request collect them, else ""."""

_entries: dict[str, RevisionEntry] = {}
"""The policies that requests in this process may have, by their keys."""


def register(entries: Collection[RevisionEntry], forget: Collection[str] = ()) -> None:
    """Accept requests of these policies from now on, and none with a key in `forget`."""
    for key in forget:
        _entries.pop(key, None)
    _entries.update({entry.key: entry for entry in entries})


class TrackedRequest:
    """The state of one request: the last readings of its guards, and its verdict."""

    def __init__(
        self, entry: RevisionEntry, request_id: str, record: Record, record_id: str = ""
    ) -> None:
        self.key = entry.key
        self.readings: Sequence[Sequence[Any]] | None = None
        """For each guard of the plan: score, threshold, position and whether they are valid."""
        self.ended_by_guard = False
        self.verdict: Verdict | None = None
        self._entry, self._id = entry, request_id
        self._record, self._record_id = record, record_id
        self._started = time.monotonic()

    def close(self, *, failed: bool = False) -> None:
        """Make and record the verdict, once. `failed`: the engine failed, or no readings came."""
        if self.verdict is not None:
            return
        plan = self._entry.plan
        names = [guard.name for guard in plan.guards]
        values = (Reading(*fields) for fields in self.readings or ())
        readings = dict(zip(names, values, strict=False))
        verdict = plan.verdict(
            readings,
            request_id=self._id,
            model=self._entry.model,
            elapsed_ms=(time.monotonic() - self._started) * 1000,
        )
        self.verdict = replace(verdict, outcome="error") if failed else verdict
        self._record(self.verdict, self._record_id)

    def end(self, reason: FinishReason) -> None:
        """Close a request that has ended in the engine, or whose client has disconnected."""
        unread = self.readings is None and bool(self._entry.plan.guards)
        self.close(failed=reason == FinishReason.ERROR or unread and reason != FinishReason.ABORT)


def patch(record: Record) -> None:
    """Make vLLM's outputs carry verdicts, each of which is passed to `record`."""
    original_new = vars(RequestState)["from_new_request"].__func__
    original_output = RequestState.make_request_output
    original_completion = RequestState._new_completion_output
    original_add = RequestOutput.add
    original_abort = OutputProcessor.abort_requests
    original_error = OutputProcessor.propagate_error
    original_finish = OutputProcessor._finish_request

    def from_new_request(cls: Any, /, *args: Any, request: Any, **kwargs: Any) -> Any:
        state = original_new(cls, *args, request=request, **kwargs)
        if (params := request.sampling_params) is not None:
            entry = _entries.get((params.extra_args or {}).get(PLAN, ""))
            if entry is None:
                raise ValueError("a request from another front end cannot be guarded")
            parent, name = kwargs.get("parent_req"), request.external_req_id
            call = current_call.get()
            if call is not None and call.exchange.record_id:
                name = call.row_name()
            elif parent is not None:
                name = f"{parent.external_req_id}/{kwargs.get('request_index', 0)}"
            record_id = call.exchange.record_id if call is not None else ""
            state.tracked = TrackedRequest(entry, name, record, record_id)
        return state

    @wraps(original_output)
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
        tracked: TrackedRequest | None = getattr(self, "tracked", None)
        rest = dict(kv_transfer_params or {})
        readings, ended = rest.pop(READINGS, None), rest.pop(ENDED, False)
        if tracked is not None:
            tracked.readings = tracked.readings if readings is None else readings
            tracked.ended_by_guard = tracked.ended_by_guard or ended
            if finish_reason is not None:
                tracked.end(finish_reason)
        result = original_output(
            *(self, new_token_ids, pooling_output, finish_reason, stop_reason, rest or None),
            *args,
            **kwargs,
        )
        if result is not None and tracked is not None:
            _set_verdict(result)
        return result

    @wraps(original_completion)
    def _new_completion_output(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = original_completion(self, *args, **kwargs)
        tracked: TrackedRequest | None = getattr(self, "tracked", None)
        if tracked is not None and tracked.verdict is not None:
            result.guard = tracked.verdict.as_dict()
            if tracked.ended_by_guard:
                result.finish_reason = "content_filter"
        return result

    @wraps(original_add)
    def add(self: Any, next_output: Any, *args: Any, **kwargs: Any) -> None:
        # vLLM merges outputs that the caller has not fetched yet
        original_add(self, next_output, *args, **kwargs)
        verdicts = {new.index: getattr(new, "guard", None) for new in next_output.outputs}
        for completion in self.outputs:
            if (verdict := verdicts.get(completion.index)) is not None:
                completion.guard = verdict
        _set_verdict(self)

    @wraps(original_abort)
    def abort_requests(self: Any, *args: Any, **kwargs: Any) -> Any:
        running = dict(self.request_states)
        aborted = original_abort(self, *args, **kwargs)
        for name in aborted:
            if (tracked := getattr(running.get(name), "tracked", None)) is not None:
                tracked.close()
        return aborted

    @wraps(original_error)
    def propagate_error(self: Any, *args: Any, **kwargs: Any) -> Any:
        for state in self.request_states.values():
            if (tracked := getattr(state, "tracked", None)) is not None:
                tracked.close(failed=True)
        return original_error(self, *args, **kwargs)

    @wraps(original_finish)
    def _finish_request(self: Any, req_state: Any) -> None:
        # an engine that has refused a request makes no output of it
        if (tracked := getattr(req_state, "tracked", None)) is not None:
            tracked.close(failed=True)
        original_finish(self, req_state)

    RequestState.from_new_request = classmethod(from_new_request)
    RequestState.make_request_output = make_request_output
    RequestState._new_completion_output = _new_completion_output
    RequestOutput.add = add
    OutputProcessor.abort_requests = abort_requests
    OutputProcessor.propagate_error = propagate_error
    OutputProcessor._finish_request = _finish_request


def _set_verdict(output: Any) -> None:
    """Set the `guard` of an output: the verdict of its completion, or the list of all of them."""
    verdicts = [getattr(completion, "guard", None) for completion in output.outputs]
    output.guard = verdicts[0] if len(verdicts) == 1 else verdicts
