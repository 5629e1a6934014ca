"""vLLM's scheduler with guards: what workers have told of a request goes out with its last output.

Runs in the engine's core. What is told is a dictionary a request, in the output of the forward in
which it was decided; `stop` in it ends the request there, without the token of that forward.
"""

from __future__ import annotations

from functools import wraps
from typing import Any

from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import FinishReason
from vllm.v1.request import RequestStatus

STOPPED = "guard"
"""The `stop_reason` of a request that a guard has ended."""


def surround() -> None:
    """Let the scheduler pass on what guards tell. Does nothing the second time."""
    own = Scheduler.update_from_output
    if hasattr(own, "guarded"):
        return

    @wraps(own)
    def update_from_output(self: Any, scheduled: Any, output: Any) -> Any:
        for name, told in (getattr(output, "guard", None) or {}).items():
            if (request := self.requests.get(name)) is not None:
                request.guard = told
        # those that end are forgotten on the way
        carried = {
            name: request.guard
            for name in output.req_ids
            if hasattr(request := self.requests.get(name), "guard")
        }
        sent = own(self, scheduled, output)
        for each in sent.values() if carried else ():
            for out in each.outputs:
                if (told := carried.get(out.request_id)) is not None:
                    _pass_on(self, out, told)
        return sent

    update_from_output.guarded = True  # type: ignore[attr-defined]
    Scheduler.update_from_output = update_from_output


def _pass_on(scheduler: Any, out: Any, told: dict[str, Any]) -> None:
    if told["stop"]:
        out.new_token_ids = []
        out.new_logprobs = None
        if not out.finished:
            scheduler.finish_requests(out.request_id, RequestStatus.FINISHED_ABORTED)
        out.finish_reason, out.stop_reason = FinishReason.STOP, STOPPED
    if out.finished:
        out.kv_transfer_params = (out.kv_transfer_params or {}) | {"guard": told}
