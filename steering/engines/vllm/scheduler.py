"""vLLM's scheduler with guards: what workers have told of a request goes out with its output.

Runs in the engine's core. A request that guards end has no token of the forward in which they did,
but for drafts that were taken before.
"""

from __future__ import annotations

from functools import wraps
from typing import Any

from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import FinishReason
from vllm.v1.request import RequestStatus

from steering.engines.vllm.runner import RowReport

STOPPED = "guard"
"""The `stop_reason` of a request that a guard has ended."""

TOLD, ENDED = "guard", "guard_ended"
"""In an output's `kv_transfer_params`, the only open place there: what guards have seen, and
whether they have ended the request (its stop reason may be a stop string of that name)."""


def surround() -> None:
    """Let the scheduler pass on what guards tell."""
    own = Scheduler.update_from_output

    @wraps(own)
    def update_from_output(self: Any, scheduled: Any, output: Any) -> Any:
        told = getattr(output, "guard", None)
        sent = own(self, scheduled, output)
        if told:
            for each in sent.values():
                for out in each.outputs:
                    if (of := told.get(out.request_id)) is not None:
                        _pass_on(self, out, of)
        return sent

    Scheduler.update_from_output = update_from_output


def _pass_on(scheduler: Any, out: Any, told: RowReport) -> None:
    # a stop may stand among tokens that were drafted: nothing behind it was said
    told = told.of(len(out.new_token_ids))
    if told.keep is not None:
        out.new_token_ids = out.new_token_ids[: told.keep]
        if out.new_logprobs is not None:
            out.new_logprobs = out.new_logprobs.slice_request(0, len(out.new_token_ids))
        if not out.finished:
            scheduler.finish_requests(out.request_id, RequestStatus.FINISHED_ABORTED)
        out.finish_reason, out.stop_reason = FinishReason.STOP, STOPPED
    seen = [[own.score, own.threshold, own.position, own.valid] for own in told.readings]
    more = {TOLD: seen, ENDED: told.keep is not None}
    out.kv_transfer_params = (out.kv_transfer_params or {}) | more
