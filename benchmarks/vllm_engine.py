"""One vLLM engine in a process of its own, asleep until it is asked for a round of requests.

A process has the plugin or has not: so each engine of a comparison is one. The engine's core runs
in that process too, where its tables can be seen.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.vllm_own import Own
from guard.data.prompts import ForgetPrompt, RetainPrompt, in_split, read_rows

TOPIC = Path("examples/harry-potter")


@dataclass(frozen=True)
class Options:
    """How vLLM is started. `config` None leaves the plugin out."""

    model: str
    config: Path | None
    requests: int
    tokens: int
    eager: bool
    threads: int
    cache_mib: int


@dataclass(frozen=True)
class Round:
    """What came of one round; `answers` are the generated tokens of each request, in their order.

    `first` is the median time to the first token; `fired` counts the requests with a guard that
    has fired, `told` those that came back with what a guard has seen. `cpu` is what the process has
    computed, in seconds, and `own` what of it the plugin has, as a share.
    """

    seconds: float
    cpu: float
    own: float
    first: float
    told: int
    fired: int
    answers: list[list[int]]


class Engine:
    """The parent's end. Raises RuntimeError where vLLM does not start or a round fails."""

    def __init__(self, options: Options) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, options), daemon=True)
        self._process.start()
        theirs.close()
        self._heard()

    def round(self, policies: Sequence[str]) -> Round:
        """All requests at once; every other one has one of `policies`, dealt in turn."""
        found: Round = self._asked(("round", list(policies)))
        return found

    def memory(self) -> dict[str, int]:
        """In bytes: what the process holds, and of it the tables: guards, kept gates, rows."""
        found: dict[str, int] = self._asked(("memory", None))
        return found

    def close(self) -> None:
        """End the process."""
        self._process.terminate()
        self._process.join()

    def _asked(self, question: tuple[str, Any]) -> Any:
        self._pipe.send(question)
        return self._heard()

    def _heard(self) -> Any:
        try:
            return self._pipe.recv()
        except EOFError:
            raise RuntimeError("the engine's process has ended: see what it wrote above") from None


def _serve(pipe: Any, options: Options) -> None:
    # vLLM logs to what is the parent's table, or JSON
    os.dup2(2, 1)
    os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)
    os.environ |= {
        "OMP_NUM_THREADS": str(options.threads),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_LOGGING_LEVEL": "WARNING",
    }
    if options.config is None:
        os.environ["VLLM_PLUGINS"] = ""
        os.environ.pop("GUARD_CONFIG", None)
    else:
        os.environ["GUARD_CONFIG"] = str(options.config)
    from vllm import LLM

    llm = LLM(
        model=options.model,
        dtype="float32",
        enforce_eager=options.eager,
        max_model_len=512,
        max_num_seqs=options.requests,
        kv_cache_memory_bytes=options.cache_mib * 2**20,
        # every round computes its prompts anew
        enable_prefix_caching=False,
        # it is these that have the time to the first token
        disable_log_stats=False,
    )
    own = Own() if options.config else None
    prompts = _prompts(llm.get_tokenizer(), options.requests)
    pipe.send("ready")
    while True:
        question, policies = pipe.recv()
        if question == "memory":
            pipe.send(_memory())
        else:
            pipe.send(_round(llm, prompts, policies, options, own))


def _prompts(tokenizer: Any, count: int) -> list[dict[str, list[int]]]:
    """One to four questions each; every fourth is of the guarded topic, the others are far."""
    retain = in_split(read_rows(TOPIC / "retain.jsonl", RetainPrompt), "test")
    forget = in_split(read_rows(TOPIC / "forget.jsonl", ForgetPrompt), "test")
    far = iter([row.prompt for row in retain if not row.near])
    topic = iter([row.prompt for row in forget])
    made = []
    for number in range(count):
        source = topic if number % 4 == 3 else far
        text = "\n".join(next(source) for _ in range(1 + number // 4 % 4))
        said = [{"role": "user", "content": text}]
        ids = tokenizer.apply_chat_template(said, add_generation_prompt=True, return_dict=False)
        made.append({"prompt_token_ids": list(ids)})
    return made


def _round(
    llm: Any,
    prompts: Sequence[Any],
    policies: Sequence[str],
    options: Options,
    own: Own | None,
) -> Round:
    from vllm import SamplingParams

    def params(number: int) -> SamplingParams:
        guarded = policies and number % 2
        extra = {"guard_policy": policies[number // 2 % len(policies)]} if guarded else None
        return SamplingParams(
            temperature=0.0, max_tokens=options.tokens, ignore_eos=True, extra_args=extra
        )

    asked = [params(number) for number in range(len(prompts))]
    if own:
        own.reset()
    began, computed = time.perf_counter(), time.process_time()
    outputs = llm.generate(prompts, asked, use_tqdm=False)
    seconds, cpu = time.perf_counter() - began, time.process_time() - computed
    # bare requests have a verdict too, of no guards
    verdicts = (getattr(each, "guard", None) for each in outputs)
    told = [found for found in verdicts if found and found["guards"]]
    return Round(
        seconds=seconds,
        cpu=cpu,
        own=own.seconds / cpu if own else 0.0,
        first=statistics.median(each.metrics.first_token_latency for each in outputs),
        told=len(told),
        fired=sum(any(guard["fired"] for guard in each["guards"]) for each in told),
        answers=[list(each.outputs[0].token_ids) for each in outputs],
    )


def _memory() -> dict[str, int]:
    status = Path("/proc/self/status").read_text()
    resident = next(line for line in status.splitlines() if line.startswith("VmRSS"))
    found = {"resident": int(resident.split()[1]) * 1024}
    if os.environ.get("GUARD_CONFIG"):
        from steering.hidden.packed import PackedTable

        # wherever the plugin keeps it; vLLM has frozen what was there when it was ready
        gc.unfreeze()
        [table] = [each for each in gc.get_objects() if isinstance(each, PackedTable)]
        found |= {
            "guards": _bytes(vars(table.bank)),
            "kept": table._kept.nbytes,
            "rows": _bytes(vars(table)) - table._kept.nbytes,
        }
    return found


def _bytes(held: dict[Any, Any]) -> int:
    """Of the tensors and arrays that are there, also by layer."""
    return sum(
        _bytes(value) if isinstance(value, dict) else getattr(value, "nbytes", 0)
        for value in held.values()
    )
