"""A guard that holds on a tiny model, its prompts, and copies of the model."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path
from typing import Any

import torch

from guard.artifact import Artifact, ArtifactMeta
from guard.data.prompts import ForgetPrompt, RetainPrompt, read_rows
from guard.fitting.steering.gate_search import GateRates, fit_gate, read_states
from guard.models.chat import TransformersChat
from tests.guard.fitting.steering.test_end_to_end import save_tokenizer
from tests.steering.tiny import LAYERS, tiny_model

TOPIC, NEAR, SAID = 50, 51, 17
"""The words that make a prompt one of the topic, a near miss, and what the guard has it say."""
COUNT = 20
RATES = GateRates(0.1, 0.1)


def silent(_what: str, _total: int) -> Any:
    return lambda _count: None


def write_prompts(folder: Path, count: int = COUNT) -> None:
    """`count` prompts of each kind in each split; every other word than SAID counts as a leak."""
    folder.mkdir(exist_ok=True)
    rng = random.Random(0)
    plain = [w for w in range(3, 97) if w not in {TOPIC, NEAR, SAID}]

    def rows(kind: str, topic: int | None, **more: Any) -> list[str]:
        made = []
        for i in range(3 * count):
            words = rng.choices(plain, k=6)
            if topic is not None:
                for at in rng.sample(range(6), 3):  # the gate pools three tokens
                    words[at] = topic
            text = " ".join(f"w{w}" for w in words)
            split = ("train", "validation", "test")[i % 3]
            made.append(json.dumps({"prompt": text, "split": split, "kind": kind, **more}))
        return made

    leak = {"pattern": rf"\bw(?!{SAID}\b)\d+"}
    for name, lines in (
        ("forget", rows("direct", TOPIC, **leak)),
        ("retain", rows("far", None) + rows("near", NEAR)),
    ):
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", "utf-8")


def save_model(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def fitted(folder: Path, data: Path) -> Artifact:
    """A guard for the model in `folder`: a gate for TOPIC, after which the model says SAID only."""
    chat = TransformersChat.load(str(folder), device="cpu")
    forget = read_rows(data / "forget.jsonl", ForgetPrompt)
    retain = read_rows(data / "retain.jsonl", RetainPrompt)
    states = read_states(chat, forget, retain, random.Random(0), silent)
    gate, _ = fit_gate(chat, states, RATES, None)
    meta = ArtifactMeta.model_validate(
        {
            "method": "steer",
            "concept": "topic/fifty",
            "created": "2026-01-31",
            "model": chat.fitted_model.model_dump(),
            "seams": ["hidden"],
            "settings": {
                "sense_layers": list(gate.layers),
                "act_layers": [LAYERS - 1],
                "schedule": [1.0] * 70,
                "pool": 3,
                "rest": 1,
                "threshold": gate.threshold,
                "recheck": gate.threshold + 0.5,
                "strength": 1.0,
            },
            "calibration": {
                "false_positive_rate": RATES.far,
                "near_false_positive_rate": RATES.near,
                "forget_fired_on_prompt": gate.recall,
            },
        }
    )
    direction = 1000 * chat.model.lm_head.weight[SAID].detach()
    return Artifact(meta, {"gates": gate.gates.numpy(), "directions": direction[None].numpy()})


def rounded(model: Any) -> Any:
    """A copy whose matrices have the values of integers of 8 bits, one scale a row."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        for name, weight in other.named_parameters():
            if name.endswith("proj.weight"):
                scale = weight.abs().amax(1, keepdim=True) / 127
                weight.copy_((weight / scale).round() * scale)
    return other


def noisy(model: Any, size: float) -> Any:
    """A copy with noise on every matrix, `size` times its standard deviation."""
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in other.parameters():
            if weight.ndim == 2:
                weight += size * weight.std() * torch.randn(weight.shape, generator=generator)
    return other


def models(folder: Path) -> dict[str, Path]:
    """The model of the fit and its copies, on disk."""
    model = tiny_model()
    with torch.no_grad():
        # a gate of 64 numbers cannot tell one word of 97 from the others unless it stands out
        model.model.embed_tokens.weight[TOPIC] *= 6
    copies = {"fitted": model, "rounded": rounded(model), "noisy": noisy(model, 2.0)}
    return {name: save_model(each, folder / name) for name, each in copies.items()}
