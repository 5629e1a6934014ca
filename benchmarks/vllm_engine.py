"""A vLLM engine in a separate process, idle until a round of requests is asked for.

The plugin is loaded into a whole process or not at all, so that every engine of a comparison needs
a process. The engine's core runs in it too, where the tables of the guards can be read.
"""

from __future__ import annotations

import gc
import itertools
import multiprocessing
import os
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.host_syncs import Syncs, count_syncs, own_places
from benchmarks.vllm_plugin_time import PluginTime
from guard.data.prompts import ForgetPrompt, RetainPrompt, in_split, read_rows
from steering.hidden.bank import HiddenBank

TOPIC = Path("examples/harry-potter")
PROFILED = 16
"""The most tokens that each request generates under a profiler."""


@dataclass(frozen=True)
class Options:
    """The settings of vLLM. Without `config` the plugin is left out.

    `graphs` is the mode of CUDA graphs by vLLM's name, `runner` "v1" or "v2"; None takes what vLLM
    takes. `share` is the share of a GPU's memory that must be free at the start.
    """

    model: str
    config: Path | None
    requests: int
    tokens: int
    eager: bool
    threads: int
    cache_mib: int
    dtype: str = "float32"
    graphs: str | None = None
    runner: str | None = None
    share: float = 0.9


@dataclass(frozen=True)
class Round:
    """The result of one round; `tokens` has the generated tokens of each request, in their order.

    `first_token` is the median time to the first token in seconds; `fired` counts the requests with
    a guard that fired, `verdicts` those whose output has readings of a guard. `cpu` is the CPU time
    of the process in seconds, `plugin_share` the plugin's share of it, and `plugin_step` its CPU
    seconds for one forward.
    """

    seconds: float
    cpu: float
    plugin_share: float
    plugin_step: float
    first_token: float
    verdicts: int
    fired: int
    tokens: list[list[int]]


class Engine:
    """An engine, from the parent process; it starts while the caller goes on. Raises RuntimeError
    where vLLM does not start or fails."""

    def __init__(self, options: Options) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, child_pipe = context.Pipe()
        self._process = context.Process(target=_serve, args=(child_pipe, options), daemon=True)
        self._process.start()
        child_pipe.close()
        self._ready = False

    def round(self, policies: Sequence[str]) -> Round:
        """Run all requests at once; every second one has one of `policies`, in turn."""
        result: Round = self._ask(("round", list(policies)))
        return result

    def syncs(self, policies: Sequence[str]) -> tuple[Syncs, Mapping[str, int]]:
        """Run as in `round`, profiled: the host syncs of one forward, and where in this repository
        the CPU waits for the GPU (`own_places`)."""
        result: tuple[Syncs, Mapping[str, int]] = self._ask(("syncs", list(policies)))
        return result

    def memory(self) -> dict[str, int]:
        """Bytes of the process (`resident`), and of its tables: `guards`, `kept` gates, `rows`."""
        result: dict[str, int] = self._ask(("memory", None))
        return result

    def close(self) -> None:
        """End the process."""
        self._process.terminate()
        self._process.join()

    def wait(self) -> None:
        """Wait until it is ready."""
        if not self._ready:
            self._receive()
            self._ready = True

    def _ask(self, question: tuple[str, Any]) -> Any:
        self.wait()
        self._pipe.send(question)
        return self._receive()

    def _receive(self) -> Any:
        try:
            return self._pipe.recv()
        except EOFError:
            raise RuntimeError("the engine's process has ended: see its output above") from None


def _serve(pipe: Any, options: Options) -> None:
    # vLLM logs to stdout, which the parent needs for its table or JSON
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
    if options.runner is not None:
        os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "1" if options.runner == "v2" else "0"
    from vllm import LLM

    llm = LLM(
        model=options.model,
        dtype=options.dtype,
        enforce_eager=options.eager,
        **({"compilation_config": {"cudagraph_mode": options.graphs}} if options.graphs else {}),
        max_model_len=512,
        max_num_seqs=options.requests,
        kv_cache_memory_bytes=options.cache_mib * 2**20,
        gpu_memory_utilization=options.share,
        # every round must compute its prompts again
        enable_prefix_caching=False,
        # the statistics hold the time to the first token
        disable_log_stats=False,
    )
    plugin_time = PluginTime() if options.config else None
    prompts = _prompts(llm.get_tokenizer(), options.requests)
    pipe.send("ready")
    while True:
        question, policies = pipe.recv()
        if question == "memory":
            pipe.send(_memory())
        elif question == "syncs":
            pipe.send(_syncs(llm, prompts, policies, options))
        else:
            pipe.send(_round(llm, prompts, policies, options, plugin_time))


def _prompts(tokenizer: Any, count: int) -> list[dict[str, list[int]]]:
    """Prompts of one to four questions; every fourth prompt asks about the guarded topic."""
    retain = in_split(read_rows(TOPIC / "retain.jsonl", RetainPrompt), "test")
    forget = in_split(read_rows(TOPIC / "forget.jsonl", ForgetPrompt), "test")
    far = itertools.cycle([row.prompt for row in retain if not row.near])
    topic = itertools.cycle([row.prompt for row in forget])
    prompts = []
    for number in range(count):
        source = topic if number % 4 == 3 else far
        text = "\n".join(next(source) for _ in range(1 + number // 4 % 4))
        if tokenizer.chat_template is None:
            ids = tokenizer.encode(text)
        else:
            chat = [{"role": "user", "content": text}]
            ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
        prompts.append({"prompt_token_ids": list(ids)})
    return prompts


def _sampling(count: int, policies: Sequence[str], options: Options) -> list[Any]:
    """Greedy requests, of which every second one has one of `policies`, in turn."""
    from vllm import SamplingParams

    def params(number: int) -> SamplingParams:
        guarded = policies and number % 2
        extra = {"guard_policy": policies[number // 2 % len(policies)]} if guarded else None
        return SamplingParams(
            temperature=0.0, max_tokens=options.tokens, ignore_eos=True, extra_args=extra
        )

    return [params(number) for number in range(count)]


def _round(
    llm: Any,
    prompts: Sequence[Any],
    policies: Sequence[str],
    options: Options,
    plugin_time: PluginTime | None,
) -> Round:
    sampling = _sampling(len(prompts), policies, options)
    if plugin_time:
        plugin_time.reset()
    began, computed = time.perf_counter(), time.process_time()
    outputs = llm.generate(prompts, sampling, use_tqdm=False)
    seconds, cpu = time.perf_counter() - began, time.process_time() - computed
    # bare requests have a verdict too, without guards
    reported = (getattr(output, "guard", None) for output in outputs)
    verdicts = [verdict for verdict in reported if verdict and verdict["guards"]]
    own = plugin_time.seconds if plugin_time else 0.0
    return Round(
        seconds=seconds,
        cpu=cpu,
        plugin_share=own / cpu,
        plugin_step=own / max(plugin_time.steps, 1) if plugin_time else 0.0,
        first_token=statistics.median(output.metrics.first_token_latency for output in outputs),
        verdicts=len(verdicts),
        fired=sum(any(guard["fired"] for guard in verdict["guards"]) for verdict in verdicts),
        tokens=[list(output.outputs[0].token_ids) for output in outputs],
    )


def _syncs(
    llm: Any, prompts: Sequence[Any], policies: Sequence[str], options: Options
) -> tuple[Syncs, Mapping[str, int]]:
    engine = llm.llm_engine
    steps = 0
    # a profile has an entry for each kernel
    few = replace(options, tokens=min(options.tokens, PROFILED))

    def run() -> None:
        nonlocal steps
        steps = 0
        sampling = _sampling(len(prompts), policies, few)
        for number, (prompt, params) in enumerate(zip(prompts, sampling, strict=True)):
            engine.add_request(str(number), prompt, params)
        while engine.has_unfinished_requests():
            engine.step()
            steps += 1

    places = own_places(run)
    return count_syncs(run).per(steps), places


def _memory() -> dict[str, int]:
    status = Path("/proc/self/status").read_text()
    resident = next(line for line in status.splitlines() if line.startswith("VmRSS"))
    sizes = {"resident": int(resident.split()[1]) * 1024}
    if os.environ.get("GUARD_CONFIG"):
        from steering.hidden.packed import PackedTable

        # the plugin has no way to its table from here; vLLM froze the objects of its start-up
        gc.unfreeze()
        [table] = [item for item in gc.get_objects() if isinstance(item, PackedTable)]
        sizes |= {
            "guards": guard_bytes(table.bank),
            "kept": table._gates.nbytes,
            "rows": _bytes(vars(table)) - table._gates.nbytes,
        }
    return sizes


def guard_bytes(bank: HiddenBank) -> int:
    """Bytes of the tensors of all loaded guards: those of the bank, and those of its stacks."""
    return sum(_bytes(vars(part)) for part in (bank, *bank.stacks))


def _bytes(fields: dict[Any, Any]) -> int:
    """Bytes of the tensors and arrays among the values, also of those in dictionaries by layer and
    in parts of a stack."""
    parts = (
        vars(value) if type(value).__module__.startswith("steering.") else value
        for value in fields.values()
    )
    return sum(
        _bytes(part) if isinstance(part, dict) else getattr(part, "nbytes", 0) for part in parts
    )
