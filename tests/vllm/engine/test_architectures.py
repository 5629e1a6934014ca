"""Models whose layers keep their keys, or return their states, in another way than Llama's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("vllm", reason="vLLM has an environment of its own: make test-vllm")

from guard.config.schema import load_config
from guard.plans.language import LanguagePlans, ServedModel
from steering.engines.transformers.engine import TransformersEngine
from steering.fingerprint import checkpoint_fingerprint
from tests.steering.engines.driver import ids, serve, start
from tests.steering.tiny import prompt, tiny_model
from tests.vllm.checkpoint import CONFIG, WIDTH, save, save_guard
from tests.vllm.conftest import WAYS
from tests.vllm.driver import drawn, run

BLOCK = 32
"""Tokens in a block of keys, as the driver has it."""

SIZE = {"hidden_size": WIDTH, "num_attention_heads": 4, "num_key_value_heads": 2}
WINDOW = {"sliding_window": 40}
"""Shorter than most prompts, and no multiple of a block."""

MODELS: Mapping[str, tuple[Mapping[str, Any], int]] = {
    # every layer slides: the plugin has their blocks kept
    "mistral": (SIZE | WINDOW, 14),
    # of four layers one attends to all tokens: several groups of blocks
    "gemma3_text": (SIZE | WINDOW | {"head_dim": 32}, 26),
    "mixtral": (SIZE, 14),
    # layers that return one tensor
    "gpt2": ({"n_embd": WIDTH}, 14),
    # layers that return their states beside a residual that nobody adds
    "stablelm": (SIZE, 14),
}
"""By kind: how its size differs from that of the tests elsewhere, and the blocks of a cache that is
too small for all requests at once."""


@pytest.fixture(scope="module")
def requests() -> list[dict[str, Any]]:
    return drawn(36, seed=5)


@pytest.mark.parametrize(
    ("kind", "name"),
    [*((kind, "v1") for kind in MODELS), ("mistral", "v2"), ("gemma3_text", "v2")],
)
def test_tokens_and_verdicts_are_those_of_transformers(
    kind: str, name: str, requests: list[dict[str, Any]], tmp_path: Path
) -> None:
    changes, blocks = MODELS[kind]
    served = tiny_model(kind, **changes)
    save(tmp_path, served)
    crowded = {"num_gpu_blocks_override": blocks, "scheduling_policy": "priority"}
    found = run(tmp_path, requests, **crowded, **WAYS[name])
    known = replace(ServedModel.of(served), fingerprint=checkpoint_fingerprint(tmp_path / "model"))
    plans = LanguagePlans(load_config(tmp_path / "config.toml"), known, name="tiny")
    engine = TransformersEngine(served, plans.bank, capacity=1)
    steered = cached = 0
    for own, came in zip(requests, found["phases"][0], strict=True):
        if "aborted" in own:
            continue
        plan = plans[own["policy"] or "none"]
        (out,), (readings,) = serve(
            engine, [start(own["prompt"], plan.rows())], tokens=own["tokens"]
        )
        assert came["tokens"] == ids([out]), own
        expected = plan.verdict(readings, request_id="", model="", elapsed_ms=0.0)
        assert came["guard"]["outcome"] == expected.outcome
        told = {guard["guard"]: guard for guard in came["guard"]["guards"]}
        for guard in expected.guards:
            assert told[guard.guard]["position"] == guard.position
            assert told[guard.guard]["score"] == pytest.approx(guard.score, rel=1e-3)
        steered += expected.outcome == "steered"
        cached += came["cached"] >= BLOCK and bool(expected.guards)
    engine.close()
    assert found["preempted"] > 0 and steered > 3 and cached > 0


@pytest.mark.parametrize("kind", ["mistral", "gemma3_text"])
def test_bare_rows_are_those_of_vllm_without_the_plugin(
    kind: str, requests: list[dict[str, Any]], tmp_path: Path
) -> None:
    changes, blocks = MODELS[kind]
    save(tmp_path, tiny_model(kind, **changes))
    crowded = {"num_gpu_blocks_override": blocks, "scheduling_policy": "priority"}
    (came,) = run(tmp_path, requests, **crowded)["phases"]
    plain = [request | {"policy": None} for request in requests]
    (bare,) = run(tmp_path, plain, config=None, **crowded)["phases"]
    pairs = [
        (one["tokens"], other["tokens"])
        for request, one, other in zip(requests, came, bare, strict=True)
        if request["policy"] in (None, "none", "watch") and "aborted" not in request
    ]
    assert len(pairs) > 10 and all(one == other for one, other in pairs)


def test_recurrent_layers_beside_attention(tmp_path: Path) -> None:
    # gated delta rules, which a CPU runs in bfloat16 with heads of 128
    heads = {"linear_num_key_heads": 1, "linear_num_value_heads": 2}
    sizes = {"linear_key_head_dim": 128, "linear_value_head_dim": 128, "head_dim": 32}
    served = tiny_model("qwen3_next", **SIZE, **heads, **sizes).bfloat16()
    served.save_pretrained(tmp_path / "model")
    served = served.float()
    rng = np.random.default_rng(1)
    gates = rng.normal(size=(2, WIDTH)).astype("f4")
    prompts = [prompt(12 + 17 * i, seed=i) for i in range(8)]
    scores = [_score(served, gates, one) for one in prompts]
    for name, act in (("firm", 2), ("late", 1)):
        directions = (20 * rng.normal(size=(act, WIDTH))).astype("f4")
        save_guard(tmp_path, name, gates, directions, float(np.median(scores)))
    (tmp_path / "config.toml").write_text(CONFIG, "utf-8")
    asked = [
        # the second time, prefixes may be cached
        {"prompt": one, "tokens": 6, "policy": policy, "at": at}
        for policy, at in (("none", 0), ("firm", 0), ("watch", 0), ("watch", 60))
        for one in prompts
    ]
    settings = {"dtype": "bfloat16", "num_gpu_blocks_override": 200}
    (came,) = run(tmp_path, asked, **settings)["phases"]
    bare, firm, watch, again = (came[i : i + len(prompts)] for i in range(0, len(came), 8))
    for i, expected in enumerate(scores):
        told = [one[i]["guard"]["guards"][0] for one in (firm, watch, again)]
        # of bfloat16, and states are about ten times as large as the error that is left
        assert [each["score"] for each in told] == pytest.approx([expected] * 3, abs=0.8)
        assert [each["fired"] for each in told] == [told[0]["fired"]] * 3
        assert watch[i]["tokens"] == bare[i]["tokens"] == again[i]["tokens"]
        assert (firm[i]["tokens"] != bare[i]["tokens"]) == told[0]["fired"]
    assert {one["guard"]["outcome"] for one in firm} == {"pass", "steered"}


@torch.no_grad()
def _score(served: Any, gates: Any, tokens: list[int]) -> float:
    """The score of a guard that senses behind the first two layers, by its definition."""
    states = served(torch.tensor([tokens]), output_hidden_states=True).hidden_states
    by_layer = zip(states[1:3], torch.from_numpy(gates), strict=True)
    summed = torch.stack([state[0] @ gate for state, gate in by_layer]).sum(0)
    # without the first token
    return summed[1:].topk(3).values.mean().item()
