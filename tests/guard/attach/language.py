"""A language model's guards for the tests of `guard.attached`, and its answers."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch

from guard.artifact import Artifact, ArtifactMeta, FittedModel
from guard.config.policy_schema import PolicyConfig
from guard.config.schema import Config, GuardConfig
from steering.fingerprint import fingerprint
from tests.steering.tiny import LAYERS, WIDTH, prompt

ALWAYS, NEVER = -1e9, 1e9


def language_config(
    folder: Path, model: Any, *, recheck: float | None = None, **policy: Any
) -> Config:
    """Policies "loud" (its guard fires on every prompt) and "silent" (never on a prompt)."""
    generator = np.random.default_rng(0)
    meta = ArtifactMeta(
        method="steer",
        concept="topic/test",
        created=date(2026, 1, 1),
        model=FittedModel(
            name="tiny",
            architecture="llama",
            fingerprint=fingerprint(model),
            layers=LAYERS,
            width=WIDTH,
        ),
        seams=("hidden",),
        settings={
            "sense_layers": [0, 1],
            "act_layers": [2],
            "pool": 2,
            "rest": 2,
            "schedule": [1.0, 1.0, 0.5],
            "threshold": 0.0,
            "recheck": recheck,
            "strength": 1.0,
        },
    )
    tensors = {
        "gates": generator.normal(size=(2, WIDTH)).astype("f4"),
        "directions": 20 * generator.normal(size=(1, WIDTH)).astype("f4"),
    }
    Artifact(meta, tensors).save(folder / "guard.safetensors")
    path = folder / "guard.safetensors"
    return Config(
        guards=(
            GuardConfig(name="loud", artifact=path, threshold=ALWAYS),
            # the threshold of generated tokens would not lie under that of prompts otherwise
            GuardConfig(name="silent", artifact=path, threshold=NEVER, recheck=recheck),
        ),
        policies={name: PolicyConfig(guards=(name,), **policy) for name in ("loud", "silent")},
    )


def answers(model: Any, **arguments: Any) -> list[list[int]]:
    """Greedy continuation of a batch of two, the second one padded on the left."""
    long, short = prompt(9, 1), prompt(5, 2)
    ids = torch.tensor([long, [0] * 4 + short])
    mask = torch.tensor([[1] * 9, [0] * 4 + [1] * 5])
    output = model.generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=8, do_sample=False, **arguments
    )
    return output[:, 9:].tolist()  # type: ignore[no-any-return]
