"""What PEFT saves: scales and ranks by layer, and what is refused, in one line."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from steering.engines.transformers.adapters.settings import MAX_RANK, LoraSettings, UnfitAdapter
from steering.engines.transformers.adapters.weights import (
    LowRank,
    decoder_linears,
    read_adapter,
)
from tests.steering.adapters import PREFIX, save_adapter, save_settings
from tests.steering.tiny import tiny_model

Q0 = "model.layers.0.self_attn.q_proj"
Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model()


@pytest.fixture
def folder(model: Any, tmp_path: Path) -> Path:
    return save_adapter(tmp_path / "a", model)


def read(folder: Path, model: Any) -> dict[str, LowRank]:
    return read_adapter(folder, decoder_linears(model), torch.float32)


def product(factors: LowRank) -> torch.Tensor:
    return factors.write @ factors.read


def test_the_factors_of_each_layer_are_read_with_the_scale(folder: Path, model: Any) -> None:
    adapter = read(folder, model)
    assert len(adapter) == 8
    tensors = load_file(folder / "adapter_model.safetensors")
    bare = tensors[f"{PREFIX}{Q0}.lora_B.weight"] @ tensors[f"{PREFIX}{Q0}.lora_A.weight"]
    torch.testing.assert_close(product(adapter[Q0]), 2.0 * bare)
    save_settings(folder, r=4, lora_alpha=8, use_rslora=True, target_modules=["q_proj", "v_proj"])
    torch.testing.assert_close(product(read(folder, model)[Q0]), 4.0 * bare)


@pytest.mark.parametrize(
    ("pattern", "scales"),
    [
        ("q_proj", (8.0, 8.0, 2.0)),
        ("layers.0.self_attn.q_proj", (8.0, 2.0, 2.0)),
        (r"model.layers.\d.self_attn.(q|v)_proj", (8.0, 8.0, 8.0)),
        ("proj", (2.0, 2.0, 2.0)),
    ],
)
def test_patterns_choose_layers_as_in_peft(
    folder: Path, pattern: str, scales: tuple[float, ...]
) -> None:
    save_settings(folder, r=4, lora_alpha=8, alpha_pattern={pattern: 32}, target_modules=["x"])
    settings = LoraSettings.read(folder)
    layers = (Q0, Q0.replace("0", "1"), Q0.replace("q_proj", "v_proj"))
    assert tuple(settings.scale_of(layer) for layer in layers) == scales
    save_settings(folder, r=4, lora_alpha=8, rank_pattern={pattern: 2}, target_modules=["x"])
    ranks = tuple(2 if scale == 8 else 4 for scale in scales)
    settings = LoraSettings.read(folder)
    assert tuple(settings.rank_of(layer) for layer in layers) == ranks
    assert settings.scale_of(Q0) == 8 / ranks[0]


def test_targets_are_ends_of_paths_or_expressions_of_whole_ones(folder: Path, model: Any) -> None:
    for targets in (r".*\.(q|v)_proj", "all-linear", ["self_attn.q_proj", "v_proj"]):
        save_settings(folder, r=4, target_modules=targets)
        assert len(read(folder, model)) == 8
    for targets in (["q_proj"], [Q0, "v_proj"], r"(q|v)_proj", ["roj"]):
        save_settings(folder, r=4, target_modules=targets)
        with pytest.raises(UnfitAdapter, match="which its target_modules do not name"):
            read(folder, model)
    save_settings(folder, r=4, target_modules=["q_proj", "v_proj", "o_proj"])
    with pytest.raises(UnfitAdapter, match="no weights for 'o_proj'"):
        read(folder, model)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"peft_type": "IA3"}, "'IA3': only LORA"),
        ({"use_dora": True}, "'use_dora'"),
        ({"modules_to_save": ["lm_head"]}, "'modules_to_save'"),
        ({"fan_in_fan_out": True}, "'fan_in_fan_out'"),
        ({"layer_replication": [[0, 4]]}, "'layer_replication'"),
        ({"trainable_token_indices": [1]}, "'trainable_token_indices'"),
        ({"target_parameters": ["experts"]}, "'target_parameters'"),
        ({"a_variant_of_tomorrow": 1}, "'a_variant_of_tomorrow'"),
        ({"bias": "all"}, "trained biases"),
        ({"init_lora_weights": "pissa_niter_4"}, "changes the weights of the model"),
        ({"r": 0}, "rank 0"),
        ({"r": MAX_RANK + 1}, f"1 to {MAX_RANK}"),
        ({"r": True}, "rank True"),
        ({"rank_pattern": {"q_proj": 10**9}}, "rank 1000000000"),
        ({"rank_pattern": {"(": 4}}, "invalid expression"),
        ({"alpha_pattern": ["q_proj"]}, "alpha_pattern that is not an object"),
        ({"lora_alpha": "8"}, "lora_alpha '8'"),
        ({"lora_alpha": float("nan")}, "lora_alpha nan"),
        ({"target_modules": None}, "no target_modules"),
        ({"target_modules": "(q_proj"}, "invalid expression"),
    ],
)
def test_settings_that_are_not_supported_are_refused_by_name(
    folder: Path, settings: dict[str, Any], words: str
) -> None:
    save_settings(folder, **({"r": 4, "target_modules": ["q_proj"]} | settings))
    with pytest.raises(UnfitAdapter) as error:
        LoraSettings.read(folder)
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("text", [b"[1]", b"{", b"\xff", b"[" * 200_000, b" " * (2**20 + 1)])
def test_files_that_are_no_settings_are_refused(folder: Path, text: bytes) -> None:
    (folder / "adapter_config.json").write_bytes(text)
    with pytest.raises(UnfitAdapter):
        LoraSettings.read(folder)


def test_pickles_are_not_read(folder: Path) -> None:
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(UnfitAdapter, match="pickles are not read"):
        LoraSettings.read(folder)


def _rename(old: str, new: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {key.replace(old, new): value for key, value in tensors.items()}


def _with(key: str, value: torch.Tensor) -> Callable[[Tensors], Tensors]:
    return lambda tensors: tensors | {f"{PREFIX}{key}": value}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_with(f"{Q0}.lora_magnitude_vector", torch.ones(32)), "no factor of a linear layer"),
        (_with("lm_head.lora_A.weight", torch.ones(4, 32)), "'lm_head', which is no linear layer"),
        (_rename("layers.3", "layers.9"), "layers.9.self_attn.q_proj"),
        (_rename(f"{Q0}.lora_A", f"{Q0}.lora_C"), "no factor of a linear layer"),
        (_with(f"{Q0}.lora_A.weight", torch.ones(4, 31)), "[4, 31]"),
        (_with(f"{Q0}.lora_A.weight", torch.ones(3, 32)), "[3, 32]"),
        (_with(f"{Q0}.lora_B.weight", torch.ones(32, 4).int()), "I32"),
        (_with(f"{Q0}.lora_B.weight", torch.full((32, 4), torch.nan)), "NaN or infinity"),
        (lambda tensors: {k: t for k, t in tensors.items() if f"{Q0}.lora_B" not in k}, "factor B"),
        (lambda _: {}, "no weights"),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    folder: Path, model: Any, change: Callable[[Tensors], Tensors], words: str
) -> None:
    path = folder / "adapter_model.safetensors"
    save_file(change(load_file(path)), path)
    with pytest.raises(UnfitAdapter) as error:
        read(folder, model)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_a_damaged_file_is_refused(folder: Path, model: Any) -> None:
    (folder / "adapter_model.safetensors").write_bytes(b"rubbish")
    with pytest.raises(UnfitAdapter, match="cannot be read"):
        read(folder, model)


def test_layers_of_other_kinds_cannot_be_changed(tmp_path: Path) -> None:
    """GPT-2 has its weights transposed, in layers that are no linear ones."""
    model = tiny_model("gpt2")
    folder = tmp_path / "a"
    folder.mkdir()
    factors = {"A": torch.ones(2, 32), "B": torch.ones(96, 2)}
    key = f"{PREFIX}transformer.h.0.attn.c_attn.lora_%s.weight"
    save_file({key % f: t for f, t in factors.items()}, folder / "adapter_model.safetensors")
    save_settings(folder, r=2, target_modules=["c_attn"])
    with pytest.raises(UnfitAdapter, match="no linear layer"):
        read(folder, model)


def test_settings_need_no_torch(folder: Path) -> None:
    program = f"""
import json, sys
from pathlib import Path
from steering.engines.transformers.adapters.settings import LoraSettings
LoraSettings.read(Path({json.dumps(str(folder))}))
assert not {{"torch", "transformers"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60, cwd=Path.cwd())
