"""An engine that sleeps, and the guards after it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("vllm", reason="vLLM has an environment of its own: make test-vllm")

from tests.vllm.driver import environment  # noqa: E402

_PLAY = """
import os, sys
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
from collections.abc import Mapping
import torch
from vllm import LLM, SamplingParams
from tests.steering.tiny import prompt

llm = LLM(sys.argv[1], skip_tokenizer_init=True, dtype="float32", enforce_eager=True,
          max_model_len=160, max_num_seqs=8, block_size=32, num_gpu_blocks_override=40, seed=0)
params = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True, detokenize=False,
                        extra_args={"guard_policy": "both"})
prompts = [{"prompt_token_ids": prompt(40, seed=i)} for i in range(6)]

def ask():
    return [(tuple(out.outputs[0].token_ids), out.guard["outcome"],
             tuple((each["score"], each["position"]) for each in out.guard["guards"]),
             out.num_cached_tokens)
            for out in llm.generate(prompts, params, use_tqdm=False)]

def discard(value, seen):
    # what the memory of a GPU holds after a sleep that has not kept it
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, torch.Tensor):
        if value.is_floating_point():
            value.fill_(1e9)
    elif isinstance(value, Mapping):
        [discard(each, seen) for each in value.values()]
    elif isinstance(value, (list, tuple)):
        [discard(each, seen) for each in value]
    elif type(value).__module__.startswith("steering."):
        discard(vars(value), seen)

awake = ask()
runner = llm.llm_engine.model_executor.driver_worker.worker.model_runner
llm.sleep(level=2)
discard(runner.guarded._bank, set())
llm.wake_up(tags=["weights"])
llm.collective_rpc("reload_weights")
llm.wake_up(tags=["kv_cache"])
again = ask()
assert again == awake, (awake, again)
assert "steered" in {outcome for _, outcome, _, _ in awake}
assert ask()[0][3] == 32, "prefixes are cached anew"
try:
    llm.collective_rpc("reload_weights", kwargs={"weights_path": sys.argv[1]})
except ValueError as error:
    assert "bound to the weights" in str(error)
    print("refused: other weights")
"""


def test_guards_are_there_again_after_a_sleep_that_has_dropped_them(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _PLAY, str(folder / "model")],
        env=environment(folder / "config.toml"),
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    assert "refused: other weights" in done.stdout
