"""Quantised weights in vLLM: whose guards they take, and whose they do not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

pytest.importorskip("vllm", reason="vLLM has an environment of its own: make test-vllm")

from safetensors.torch import load_file, save_file  # noqa: E402

from guard.artifact import Artifact, Parent, version_of  # noqa: E402
from steering.fingerprint import checkpoint_fingerprint  # noqa: E402
from tests.steering.tiny import prompt  # noqa: E402
from tests.vllm.driver import played, run  # noqa: E402

_INT8 = {"num_bits": 8, "type": "int", "symmetric": True}
W8A8 = {
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "quantization_status": "compressed",
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": _INT8 | {"strategy": "channel", "dynamic": False},
            "input_activations": _INT8 | {"strategy": "token", "dynamic": True},
        }
    },
    "ignore": ["lm_head"],
}
REQUESTS = [{"prompt": prompt(6 + 5 * i, seed=i), "tokens": 8, "policy": "firm"} for i in range(12)]


@pytest.fixture(scope="module")
def packed(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `folder`, with the model in integers of 8 bits; the guards are those of plain weights."""
    made = tmp_path_factory.mktemp("packed") / "all"
    shutil.copytree(folder, made)
    weights = load_file(made / "model" / "model.safetensors")
    for name, values in [*weights.items()]:
        if name.endswith("proj.weight"):
            scale = values.abs().amax(1, keepdim=True) / 127
            weights[name] = (values / scale).round().to(torch.int8)
            weights[f"{name}_scale"] = scale
    save_file(weights, made / "model" / "model.safetensors", {"format": "pt"})
    about = json.loads((made / "model" / "config.json").read_text("utf-8"))
    (made / "model" / "config.json").write_text(
        json.dumps(about | {"quantization_config": W8A8}), "utf-8"
    )
    return made


def test_what_vllm_quantises_at_load_is_not_taken_for_the_checkpoint(folder: Path) -> None:
    settings = {"quantization": "int8_per_channel_weight_only", "dtype": "bfloat16"}
    came, told = played(folder, [REQUESTS[:1]], "config.toml", settings)
    assert came is None
    assert "quantised (int8_per_channel_weight_only when vLLM loads it); run `guard rebind" in told


def test_a_guard_of_the_plain_weights_is_refused_with_what_to_do(packed: Path) -> None:
    came, told = played(packed, [REQUESTS[:1]], "config.toml", {})
    assert came is None
    assert "it is quantised (compressed-tensors); run `guard rebind" in told


def test_a_guard_that_was_bound_to_the_quantised_weights_acts(folder: Path, packed: Path) -> None:
    for name in ("firm", "late"):
        path = packed / f"{name}.safetensors"
        fitted = Artifact.load(folder / f"{name}.safetensors")
        about = fitted.meta.model.model_copy(
            update={"fingerprint": checkpoint_fingerprint(packed / "model")}
        )
        parent = Parent(digest=fitted.digest, model=fitted.meta.model)
        version = version_of(fitted.meta.settings, parent)
        update = {"schema_version": version, "model": about, "parent": parent}
        Artifact(fitted.meta.model_copy(update=update), fitted.tensors).save(path)
    found, plain = run(packed, REQUESTS), run(folder, REQUESTS)

    def fired(outcome: object) -> list[bool]:
        text = json.dumps(outcome)
        return [part.startswith("true") for part in text.split('"fired": ')[1:]]

    assert len(fired(found)) == len(fired(plain)) >= len(REQUESTS)
    agree = [a == b for a, b in zip(fired(found), fired(plain), strict=True)]
    assert any(fired(found)) and sum(agree) >= 0.8 * len(agree)
