"""Families of vision-language models in vLLM, one after the other in a process of its own: `-m`
with a folder and the kinds, of which it makes models there. `config.toml` of that folder is the one
that guards vLLM.

Prints, as JSON behind a mark, by kind: what transformers says of a question beside each of two
images (prompt, score of the guards' gates, greedy answer), and what came of it in vLLM under some
policies; or why vLLM has refused the model.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.vllm.checkpoint import CONFIG, WIDTH, save_guard
from tests.vllm.play import MARK, play_phase
from tests.vllm.vision.absent import stand_in
from tests.vllm.vision.models import save_model, spelling
from tests.vllm.vision.pictures import picture

POLICIES = (("none", 0), ("firm", 0), ("watch", 0), ("firm", 30))
"""Each with the step at which it comes: the last one finds images and prefixes in the caches."""
SEEDS = (0, 1)
ANSWER = 6
WITH_VIDEO = {"smolvlm", "qwen2_vl", "qwen2_5_vl", "qwen3_vl"}


def main() -> None:
    """Play all kinds."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    folder = Path(sys.argv[1])
    from vllm.model_executor.models import registry

    # another process would not have the stand-ins
    registry._run_in_subprocess = lambda function: function()
    stand_in()
    told = {kind: _family(folder, kind) for kind in sys.argv[2:]}
    print(MARK + json.dumps(told), flush=True)


def _family(folder: Path, kind: str) -> dict[str, Any]:
    from vllm import EngineArgs, LLMEngine
    from vllm.distributed import cleanup_dist_env_and_memory

    expected, raw = _expected(folder / kind, kind)
    engine = None
    try:
        engine = LLMEngine.from_engine_args(
            EngineArgs(
                model=str(folder / kind / "model"),
                dtype="float32",
                enforce_eager=True,
                max_model_len=160,
                max_num_seqs=8,
                max_num_batched_tokens=64,
                block_size=32,
                num_gpu_blocks_override=60,
                limit_mm_per_prompt={"image": 1} | ({"video": 0} if kind in WITH_VIDEO else {}),
                seed=0,
            )
        )
        requests = [
            {"prompt": raw, "images": [[seed]], "tokens": ANSWER, "policy": policy, "at": at}
            for policy, at in POLICIES
            for seed in SEEDS
        ]
        came = play_phase(engine, {"requests": requests})
        return {"expected": expected, "came": came}
    except Exception as error:  # which families are refused is what is asked
        return {"expected": expected, "error": f"{type(error).__name__}: {error}"}
    finally:
        del engine
        cleanup_dist_env_and_memory()


@torch.no_grad()
def _expected(made: Path, kind: str) -> tuple[list[dict[str, Any]], list[int]]:
    """What transformers says of a new model, and the prompt as it is sent; the guards have a
    threshold between the scores of the two images."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    save_model(made / "model", kind)
    loaded: Any = AutoModelForImageTextToText.from_pretrained(made / "model", dtype=torch.float32)
    model = loaded.eval()
    processor: Any = AutoProcessor.from_pretrained(made / "model")
    words = [f"w{10 + 3 * i}" for i in range(25)]
    text = " ".join([*words[:10], spelling(kind), *words[10:]])
    rng = np.random.default_rng(1)
    gates = rng.normal(size=(2, WIDTH)).astype("f4")
    found = []
    for seed in SEEDS:
        inputs = processor(text=[text], images=[[picture(seed)]], return_tensors="pt")
        states = model(**inputs, output_hidden_states=True).hidden_states
        by_layer = zip(states[1:3], torch.from_numpy(gates), strict=True)
        summed = torch.stack([state[0] @ gate for state, gate in by_layer]).sum(0)
        # without the first token
        score = summed[1:].topk(3).values.mean()
        answer = model.generate(
            **inputs,
            max_new_tokens=ANSWER,
            min_new_tokens=ANSWER,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        prompt = inputs["input_ids"][0].tolist()
        found.append(
            {"prompt": prompt, "score": score.item(), "tokens": answer[0, len(prompt) :].tolist()}
        )
    threshold = (found[0]["score"] + found[1]["score"]) / 2
    shared = Path(os.environ["GUARD_CONFIG"]).parent
    for name, act in (("firm", 2), ("late", 1)):
        directions = (100 * rng.normal(size=(act, WIDTH))).astype("f4")
        save_guard(made, name, gates, directions, threshold)
        (made / f"{name}.safetensors").replace(shared / f"{name}.safetensors")
    (shared / "config.toml").write_text(CONFIG, "utf-8")
    return found, processor.tokenizer(text).input_ids


if __name__ == "__main__":
    main()
