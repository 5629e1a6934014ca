"""Plays requests on vLLM, in a process of its own: `python -m tests.vllm.play play.json`.

The file has `engine` (arguments of vLLM's engine) and `phases`, each with `requests` (`prompt` in
token ids, its `images` as arguments of `picture`, `tokens` at most, `policy`, the step at which it
comes `at`, the step after which it is aborted, a `lora` folder), where the configuration changes,
`reload`: the step, and the texts, and
`idle`: whether a batch of nobody runs before every step; `fault` is a context of
`tests.vllm.vision.faults`.
Prints, as JSON behind a mark, of each phase what came of its requests: tokens, finish
reason, and what was told of their guards, or the error that refused it; and, where the process
emulates what a GPU does (`tests.vllm.emulation`), what each worker has done.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from tests.vllm.emulation.census import REPORT
from tests.vllm.emulation.settings import VARIABLE
from tests.vllm.vision import faults
from tests.vllm.vision.pictures import picture

MARK = "== played =="


def main() -> None:
    """Play the file, with the cache of prefixes emptied between phases that ask for it."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    from vllm import EngineArgs, LLMEngine

    play = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    engine = LLMEngine.from_engine_args(EngineArgs(**play["engine"]))
    came = []
    for phase in play["phases"]:
        if phase.get("reset", True):
            engine.reset_prefix_cache()
        fault = phase.get("fault")
        with getattr(faults, fault)() if fault else nullcontext():
            came.append(play_phase(engine, phase))
    scheduler = engine.engine_core.engine_core.scheduler
    told = {
        "phases": came,
        "preempted": getattr(scheduler, "preempted", 0),
        "accepted": getattr(scheduler, "accepted", 0),
        "kept": _kept(engine) if "GUARD_CONFIG" in os.environ else None,
        "scheduler": type(scheduler).__name__,
        "workers": engine.collective_rpc(REPORT) if VARIABLE in os.environ else [],
    }
    print(MARK + json.dumps(told), flush=True)


def play_phase(engine: Any, phase: dict[str, Any]) -> list[dict[str, Any]]:
    """Play one phase on a running engine."""
    from vllm import SamplingParams
    from vllm.exceptions import VLLMValidationError
    from vllm.sampling_params import RequestOutputKind
    from vllm.v1.core.sched.scheduler import Scheduler

    _count(Scheduler)
    requests, reload = phase["requests"], phase.get("reload")
    came: list[dict[str, Any]] = [{} for _ in requests]
    step, waiting = 0, dict(enumerate(requests))
    while waiting or engine.has_unfinished_requests():
        if reload is not None and reload[0] == step:
            for text in reload[1]:
                _reload(engine, text, came)
        for i in [i for i, request in waiting.items() if request.get("at", 0) <= step]:
            request = waiting.pop(i)
            extra = {} if request.get("policy") is None else {"guard_policy": request["policy"]}
            params = SamplingParams(
                # several answers are not to be had greedily
                temperature=1.0 if "n" in request else 0.0,
                top_k=1,
                max_tokens=request["tokens"],
                ignore_eos=True,
                detokenize=False,
                extra_args=extra | request.get("extra", {}) or None,
                n=request.get("n", 1),
                prompt_logprobs=request.get("prompt_logprobs"),
                output_kind=RequestOutputKind.FINAL_ONLY,
            )
            prompt: dict[str, Any] = {"prompt_token_ids": request["prompt"]}
            if "images" in request:
                images = [picture(*each) for each in request["images"]]
                prompt["multi_modal_data"] = {"image": images}
            if "salt" in request:
                prompt["cache_salt"] = request["salt"]
            try:
                engine.add_request(
                    *(str(i), prompt, params),
                    lora_request=_lora(request),
                    priority=request.get("priority", 0),
                )
            except VLLMValidationError as error:
                came[i] = {"error": f"{type(error).__name__}: {error}"}
        for i, request in enumerate(requests):
            if request.get("aborted") == step:
                engine.abort_request([str(i)])
        if phase.get("idle"):
            engine.collective_rpc("execute_dummy_batch")
        for output in engine.step() if engine.has_unfinished_requests() else ():
            first = output.outputs[0]
            came[int(output.request_id)] = {
                "tokens": [list(each.token_ids) for each in output.outputs],
                "finish": first.finish_reason,
                "guard": getattr(output, "guard", None),
                "cached": output.num_cached_tokens,
            }
            if "images" in requests[int(output.request_id)]:
                # with the tokens that stand for each image
                came[int(output.request_id)]["prompt"] = output.prompt_token_ids
            if output.prompt_logprobs is not None:
                came[int(output.request_id)]["prompt_logprobs"] = [
                    own and {token: about.logprob for token, about in own.items()}
                    for own in output.prompt_logprobs
                ]
        step += 1
    return came


def _count(scheduler: Any) -> None:
    """Count on it what it does where nobody sees: preemptions, and drafts that it takes."""
    preempt, stats = scheduler._preempt_request, scheduler.make_spec_decoding_stats
    if hasattr(preempt, "counted"):
        return

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        self.preempted = getattr(self, "preempted", 0) + 1
        return preempt(self, *args, **kwargs)

    def taken(self: Any, *args: Any, **kwargs: Any) -> Any:
        self.accepted = getattr(self, "accepted", 0) + kwargs["num_accepted_tokens"]
        return stats(self, *args, **kwargs)

    counted.counted = True  # type: ignore[attr-defined]
    scheduler._preempt_request, scheduler.make_spec_decoding_stats = counted, taken


def _kept(engine: Any) -> list[int] | None:
    """How many policies front end and worker hold, those of earlier configurations included."""
    from server.vllm import outputs

    executor = engine.engine_core.engine_core.model_executor
    if not hasattr(executor, "driver_worker"):
        return None
    worker = executor.driver_worker.worker.model_runner.guard_worker
    return [len(outputs._entries), len(worker._loaded)]


def _lora(request: dict[str, Any]) -> Any:
    from vllm.lora.request import LoRARequest

    return LoRARequest("tuned", 1, request["lora"]) if "lora" in request else None


def _reload(engine: Any, text: str, came: list[dict[str, Any]]) -> None:
    from guard.errors import GuardError
    from server.vllm.reload import reload_now

    Path(os.environ["GUARD_CONFIG"]).write_text(text, "utf-8")
    try:
        reload_now(engine)
    except GuardError as error:
        came.append({"reload": str(error)})


if __name__ == "__main__":
    main()
