"""vLLM's scheduler with guards: a request's output carries the readings of its guards.

Runs in the engine's core. A request that a guard ends gets no token of the forward in which the
guard fired, except for draft tokens that were accepted before that position.
"""

from __future__ import annotations

from functools import wraps
from typing import Any

from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import FinishReason
from vllm.v1.request import RequestStatus

from steering.engines.vllm.reports import RowReport

STOPPED = "guard"
"""The `stop_reason` of a request that a guard has ended."""

READINGS, ENDED = "guard", "guard_ended"
"""Keys of an output's `kv_transfer_params`, its only open mapping: the readings of the guards, and
whether a guard has ended the request (a stop string could be named like STOPPED)."""


def patch() -> None:
    """Make the scheduler add the guards' reports to its outputs."""
    original = Scheduler.update_from_output

    @wraps(original)
    def update_from_output(self: Any, scheduled: Any, output: Any) -> Any:
        reports = getattr(output, "guard", None)
        by_client = original(self, scheduled, output)
        if reports:
            for client_outputs in by_client.values():
                for out in client_outputs.outputs:
                    if (report := reports.get(out.request_id)) is not None:
                        _add_report(self, out, report)
        return by_client

    Scheduler.update_from_output = update_from_output


def _add_report(scheduler: Any, out: Any, report: RowReport) -> None:
    # a stop may lie among draft tokens: tokens behind it do not count
    report = report.of(len(out.new_token_ids))
    if report.keep is not None:
        out.new_token_ids = out.new_token_ids[: report.keep]
        if out.new_logprobs is not None:
            out.new_logprobs = out.new_logprobs.slice_request(0, len(out.new_token_ids))
        if not out.finished:
            scheduler.finish_requests(out.request_id, RequestStatus.FINISHED_ABORTED)
        out.finish_reason, out.stop_reason = FinishReason.STOP, STOPPED
    readings = [[r.score, r.threshold, r.position, r.valid] for r in report.readings]
    entries = {READINGS: readings, ENDED: report.keep is not None}
    out.kv_transfer_params = (out.kv_transfer_params or {}) | entries
