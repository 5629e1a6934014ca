"""Which weights vLLM serves, by its settings: what it quantises at load is not the checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from steering.engines.vllm.weights import served_fingerprint, served_quantisation
from steering.fingerprint import checkpoint_fingerprint
from tests.steering.tiny import tiny_model

AT_LOAD: list[dict[str, Any]] = [
    {"quantization": "fp8"},
    {"quantization": "torchao"},
    {"quantization": "online", "quantization_config": {"linear": "fp8_per_tensor_dynamic"}},
    {"quantization": "online", "quantization_config": {"linear": "mxfp8"}},
    {"quantization": "torchao", "hf_overrides": {"quantization_config_dict_json": '{"a": 1}'}},
    {"quantization": "torchao", "hf_overrides": {"quantization_config_dict_json": '{"a": 2}'}},
    # as given by a callable: it cannot hold settings of a quantisation
    {"quantization": "mxfp8", "hf_overrides": lambda config: config},
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_model().save_pretrained(tmp_path)
    return tmp_path


def config(folder: Path, **settings: Any) -> Any:
    """What of vLLM's `ModelConfig` says which weights it serves."""
    plain = {"quantization": None, "quantization_config": None, "hf_overrides": {}}
    return SimpleNamespace(model=str(folder), revision=None, **plain | settings)


def described(folder: Path) -> None:
    about = json.loads((folder / "config.json").read_text("utf-8"))
    about["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (folder / "config.json").write_text(json.dumps(about), "utf-8")


def test_plain_weights_are_those_of_the_checkpoint(folder: Path) -> None:
    plain = config(folder, hf_overrides={"rope_theta": 5.0})
    assert served_fingerprint(plain) == checkpoint_fingerprint(folder)
    assert served_quantisation(plain) is None


def test_each_way_to_quantise_at_load_has_a_fingerprint_of_its_own(folder: Path) -> None:
    prints = [served_fingerprint(config(folder, **settings)) for settings in AT_LOAD]
    assert len({checkpoint_fingerprint(folder), *prints}) == 1 + len(AT_LOAD)
    assert prints == [served_fingerprint(config(folder, **settings)) for settings in AT_LOAD]
    assert str(served_quantisation(config(folder, **AT_LOAD[0]))) == "fp8 when vLLM loads it"


def test_settings_in_a_file_count_by_its_content(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    overrides = {"quantization_config_file": str(path)}
    given = config(folder, quantization="torchao", hf_overrides=overrides)
    prints = set()
    for text in ("{}", '{"bits": 4}'):
        path.write_text(text, "utf-8")
        prints.add(served_fingerprint(given))
    assert len(prints) == 2
    path.unlink()
    with pytest.raises(OSError):
        served_fingerprint(given)


@pytest.mark.parametrize("kernel", ["gptq", "gptq_marlin", "auto_gptq"])
def test_a_quantised_checkpoint_is_the_same_for_every_kernel(folder: Path, kernel: str) -> None:
    described(folder)
    assert served_fingerprint(config(folder, quantization=kernel)) == checkpoint_fingerprint(folder)
    assert str(served_quantisation(config(folder, quantization=kernel))) == "gptq"


def test_settings_beside_those_of_the_checkpoint_count(folder: Path) -> None:
    described(folder)
    both = config(folder, quantization="gptq", quantization_config={"moe": "mxfp8"})
    assert served_fingerprint(both) != checkpoint_fingerprint(folder)
