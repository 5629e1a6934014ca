"""A small model on disk as vLLM loads it, and guards that fire on about half of random prompts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from guard.artifact import Artifact, ArtifactMeta, version_of
from steering.engines.transformers.engine import TransformersEngine
from steering.fingerprint import checkpoint_fingerprint
from steering.hidden.rows import RowGuard
from steering.methods.steer import SteerGuard, bank_of
from tests.steering.engines.driver import serve, start
from tests.steering.tiny import LAYERS, VOCABULARY, prompt, tiny_model

WIDTH = 128
POLICIES = {
    "firm": (["firm"], "steer"),
    "both": (["firm", "late"], "steer"),
    "watch": (["firm", "late"], "observe"),
    "stop": (["firm"], "block"),
}
CONFIG = "\n".join(
    [f'[[guards]]\nname = "{name}"\nartifact = "{name}.safetensors"' for name in ("firm", "late")]
    + [
        # vLLM's answers do not go back, so that the other engine's must not either
        f'[policies.{name}]\nguards = {json.dumps(guards)}\naction = "{action}"\nrewind = false'
        for name, (guards, action) in POLICIES.items()
    ]
)

HALT = """
[policies.halt]
guards = ["late"]
action = "block"
"""
"""One that may end an answer within, for who wants it beside."""


def model() -> Any:
    """As transformers has it; vLLM's attention on a CPU wants heads of 32."""
    return tiny_model(hidden_size=WIDTH, num_attention_heads=4, num_key_value_heads=2)


def save_tokenizer(folder: Path) -> None:
    """Words `w0`, `w1`, ..., the model's tokens by number."""
    inner = Tokenizer(WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w0"))
    inner.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="w1", eos_token="w2", pad_token="w0", unk_token="w0"
    )
    tokenizer.chat_template = "{% for message in messages %}{{ message.content }} {% endfor %}"
    tokenizer.save_pretrained(folder)


def save(made: Path, served: Any = None) -> None:
    """The folder `model`, the artifacts, and config.toml; `served` is of the same size as
    `model`."""
    served = model() if served is None else served
    served.save_pretrained(made / "model")
    rng = np.random.default_rng(1)
    for name, act in (("firm", 2), ("late", 1)):
        gates = rng.normal(size=(2, WIDTH)).astype("f4")
        # the states of this model are large
        directions = (100 * rng.normal(size=(act, WIDTH))).astype("f4")
        scores = _scores(served, gates)
        # of the prompts a half, and some of the answers
        recheck = float(np.quantile(scores, 0.8)) if name == "late" else None
        save_guard(made, name, gates, directions, float(np.median(scores)), recheck=recheck)
    (made / "config.toml").write_text(CONFIG, "utf-8")


def save_guard(
    made: Path,
    name: str,
    gates: NDArray[np.float32],
    directions: NDArray[np.float32],
    threshold: float,
    *,
    recheck: float | None = None,
    tokens: str = "all",
) -> None:
    """The artifact of a guard of the model in `made`: it senses `tokens` behind the first two
    layers, and acts with a row of `directions` behind each layer from the third on."""
    settings = {
        "sense_layers": [0, 1],
        "act_layers": list(range(2, 2 + len(directions))),
        "schedule": [1.0, 0.5, 0.25],
        "pool": 3,
        "rest": 2,
        "threshold": threshold,
        "strength": 2.0,
        "recheck": recheck,
        "tokens": tokens,
    }
    # by the checkpoint, as the plugin does: experts have other names in transformers' memory
    fitted_on = checkpoint_fingerprint(made / "model")
    artifact(fitted_on, settings, gates, directions).save(made / f"{name}.safetensors")


def _scores(served: Any, gates: NDArray[np.float32]) -> list[float]:
    """What a guard of these gates says of random prompts."""
    guard = SteerGuard(
        name="g",
        sense_layers=(0, 1),
        gates=torch.from_numpy(gates),
        act_layers=(2,),
        directions=torch.zeros(1, 1, WIDTH),
        pool=3,
    )
    engine = TransformersEngine(served, bank_of([guard]), capacity=20)
    watched = [RowGuard("g", threshold=1e9, strength=1.0)]
    starts = [start(prompt(5 + 3 * i, seed=i), watched) for i in range(20)]
    _, readings = serve(engine, starts, tokens=1)
    engine.close()
    return [own["g"].score for own in readings]


def artifact(
    fitted_on: str,
    settings: Mapping[str, Any],
    gates: NDArray[np.float32],
    directions: NDArray[np.float32],
) -> Artifact:
    model = {
        "name": "tiny",
        "architecture": "LlamaForCausalLM",
        "fingerprint": fitted_on,
        "layers": LAYERS,
        "width": WIDTH,
    }
    meta = ArtifactMeta.model_validate(
        {
            "schema_version": version_of(settings, None),
            "method": "steer",
            "concept": "topic/any",
            "created": "2026-01-31",
            "model": model,
            "seams": ["hidden"],
            "settings": settings,
        }
    )
    return Artifact(meta, {"gates": gates, "directions": directions})


def save_lora(folder: Path) -> Any:
    """An adapter for the model, as vLLM loads it; gives the model with it merged in."""
    rank, alpha = 8, 16
    rng = np.random.default_rng(3)
    merged, tensors = model(), {}
    for name, parameter in merged.named_parameters():
        if not name.endswith(("q_proj.weight", "v_proj.weight")):
            continue
        wide, narrow = parameter.shape
        down = torch.from_numpy(rng.normal(size=(rank, narrow)).astype("f4")) / narrow**0.5
        up = torch.from_numpy(rng.normal(size=(wide, rank)).astype("f4"))
        parameter.data += alpha / rank * up @ down
        module = f"base_model.model.{name.removesuffix('.weight')}"
        tensors[f"{module}.lora_A.weight"] = down
        tensors[f"{module}.lora_B.weight"] = up
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    about = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": ["q_proj", "v_proj"],
        "bias": "none",
        "task_type": "CAUSAL_LM",
    }
    (folder / "adapter_config.json").write_text(json.dumps(about), "utf-8")
    return merged
