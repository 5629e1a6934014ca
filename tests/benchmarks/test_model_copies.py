"""Copies of a model: values within half a step of the original's, in the layout of the format."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.model_copies import GROUP, to_int4, to_int8, write_copy
from tests.steering.tiny import tiny_model


@pytest.fixture
def weight() -> torch.Tensor:
    return torch.randn(6, 2 * GROUP, generator=torch.Generator().manual_seed(0))


def test_integers_of_8_bits_are_within_half_a_step(weight: torch.Tensor) -> None:
    parts = to_int8(weight)
    back = parts["weight"].float() * parts["weight_scale"]
    assert parts["weight"].dtype == torch.int8
    assert ((back - weight).abs() <= 0.5001 * parts["weight_scale"]).all()


def test_integers_of_4_bits_lie_eight_in_a_word_the_first_lowest(weight: torch.Tensor) -> None:
    parts = to_int4(weight)
    assert parts["weight_packed"].shape == (6, 2 * GROUP // 8)
    assert parts["weight_packed"].dtype == torch.int32
    words = parts["weight_packed"].long()[..., None]
    integers = ((words >> torch.arange(0, 32, 4)) & 15) - 8
    scale = parts["weight_scale"].float().repeat_interleave(GROUP, 1)
    error = (integers.view(6, -1).float() * scale - weight).view(12, GROUP)
    step = weight.view(12, GROUP).abs().amax(1, keepdim=True) / 7
    uncut = (weight.view(12, GROUP) / step).round() * step - weight.view(12, GROUP)
    # bfloat16 takes a little of the scale
    assert (error.square().sum(1) <= 1.02 * uncut.square().sum(1)).all()
    assert error.square().sum() < 0.99 * uncut.square().sum()


def test_a_copy_says_how_it_is_quantised(tmp_path: Path) -> None:
    tiny_model(hidden_size=GROUP, intermediate_size=GROUP).save_pretrained(tmp_path / "plain")
    for kind, part in (("int8", "weight_scale"), ("int4", "weight_packed")):
        write_copy(tmp_path / "plain", tmp_path / kind, kind)
        about = json.loads((tmp_path / kind / "config.json").read_text("utf-8"))
        assert about["quantization_config"]["quant_method"] == "compressed-tensors"
        names = load_file(tmp_path / kind / "model.safetensors").keys()
        assert f"model.layers.0.mlp.up_proj.{part}" in names and "lm_head.weight" in names


def test_noise_has_the_size_that_was_asked_for(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path / "plain")
    write_copy(tmp_path / "plain", tmp_path / "noise", "noise-0.5")
    before, after = (load_file(tmp_path / n / "model.safetensors") for n in ("plain", "noise"))
    name = "model.layers.1.mlp.up_proj.weight"
    assert float((after[name] - before[name]).std() / before[name].std()) == pytest.approx(0.5, 0.1)
    assert (after["lm_head.weight"] == before["lm_head.weight"]).all()


def test_an_unknown_kind_is_an_error(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path / "plain")
    with pytest.raises(ValueError, match="unknown kind 'int3': int8, int4 or noise-SIZE"):
        write_copy(tmp_path / "plain", tmp_path / "int3", "int3")
