"""What a checkpoint and a loaded model say of their quantisation."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from steering.quantisation import Quantisation, of_checkpoint, of_loaded, spelled

GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128}


def described(folder: Path, **about: Any) -> Path:
    (folder / "config.json").write_text(json.dumps(about), "utf-8")
    return folder


@pytest.mark.parametrize("about", [{}, {"quantization_config": None}, {"text_config": {}}])
def test_plain_weights_have_none(tmp_path: Path, about: dict[str, Any]) -> None:
    assert of_checkpoint(described(tmp_path, **about)) is None


@pytest.mark.parametrize(
    "about",
    [
        {"quantization_config": GPTQ},
        {"compression_config": GPTQ},
        {"text_config": {"quantization_config": GPTQ}},
    ],
)
def test_it_is_found_where_checkpoints_keep_it(tmp_path: Path, about: dict[str, Any]) -> None:
    assert of_checkpoint(described(tmp_path, **about)) == Quantisation("gptq", GPTQ)


def test_settings_beside_the_description_are_read(tmp_path: Path) -> None:
    beside = {"quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": None}}
    (tmp_path / "hf_quant_config.json").write_text(json.dumps(beside), "utf-8")
    found = of_checkpoint(described(tmp_path))
    assert found == Quantisation("FP8", beside["quantization"])


def test_old_settings_of_bitsandbytes_have_a_name(tmp_path: Path) -> None:
    found = of_checkpoint(described(tmp_path, quantization_config={"load_in_4bit": True}))
    assert found and str(found) == "bitsandbytes"


@pytest.mark.parametrize("text", ["[1]", "{", "[" * 100_000])
def test_a_damaged_description_is_an_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text, "utf-8")
    with pytest.raises(ValueError):
        of_checkpoint(tmp_path)


def test_a_loaded_model_says_how_transformers_quantised_it() -> None:
    settings = SimpleNamespace(quant_method="torchao", to_dict=lambda: {"bits": 8})
    model = SimpleNamespace(hf_quantizer=SimpleNamespace(quantization_config=settings))
    found = of_loaded(model)
    assert found == Quantisation("torchao", {"bits": 8}, "transformers")
    assert str(found) == "torchao when transformers loads it"
    assert of_loaded(SimpleNamespace()) is None


def test_one_spelling_whatever_the_order_of_the_settings() -> None:
    turned = Quantisation("gptq", dict(reversed(GPTQ.items())))
    assert spelled(turned) == spelled(Quantisation("gptq", GPTQ))
    assert spelled(turned) != spelled(Quantisation("gptq", GPTQ, "vLLM"))
