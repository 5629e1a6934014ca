"""One name for the same weights, whatever dtype they were loaded in; another for any others."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from steering.fingerprint import (
    UnreadableWeights,
    checkpoint_fingerprint,
    fingerprint,
    quantisation_of,
)
from tests.steering.tiny import tiny_model


@pytest.fixture
def model() -> Any:
    """Float32 weights that bfloat16 can hold, as a checkpoint of bfloat16 has."""
    return tiny_model().bfloat16().float()


def test_float32_and_bfloat16_copies_agree(model: Any) -> None:
    assert fingerprint(copy.deepcopy(model).bfloat16()) == fingerprint(model)


def test_a_file_of_float32_agrees_with_itself_loaded_in_bfloat16() -> None:
    model = tiny_model()
    rounded = copy.deepcopy(model).bfloat16()
    assert not torch.equal(rounded.lm_head.weight.float(), model.lm_head.weight)
    assert fingerprint(rounded) == fingerprint(model)


def test_it_is_a_sha256_and_the_same_each_time(model: Any) -> None:
    first = fingerprint(model)
    assert len(first) == 64 and int(first, 16) >= 0
    assert fingerprint(model) == first == fingerprint(copy.deepcopy(model))


def test_a_small_change_to_every_weight_shows(model: Any) -> None:
    tuned = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in tuned.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter += 1e-3 * parameter.std().nan_to_num(1.0) * noise
    assert fingerprint(tuned) != fingerprint(model)


@pytest.mark.parametrize("tuned", range(3))
def test_a_change_to_one_matrix_alone_shows(model: Any, tuned: int) -> None:
    other = copy.deepcopy(model)
    matrices = [p for p in other.parameters() if p.ndim == 2]
    with torch.no_grad():
        matrices[tuned * (len(matrices) - 1) // 2].mul_(1.01)
    assert fingerprint(other) != fingerprint(model)


def test_names_and_shapes_count() -> None:
    flat, square = nn.Module(), nn.Module()
    flat.register_parameter("weight", nn.Parameter(torch.zeros(4)))
    square.register_parameter("weight", nn.Parameter(torch.zeros(2, 2)))
    renamed = nn.Module()
    renamed.register_parameter("heavy", nn.Parameter(torch.zeros(4)))
    assert len({fingerprint(m) for m in (flat, square, renamed)}) == 3


def test_reading_it_changes_nothing(model: Any) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fingerprint(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


SETTINGS = {"quant_method": "compressed-tensors", "format": "int-quantized"}


@pytest.fixture
def plain(tmp_path: Path, model: Any) -> Path:
    """A checkpoint of plain weights."""
    model.save_pretrained(tmp_path / "plain")
    return tmp_path / "plain"


def packed(plain: Path, change: Any = None, settings: Any = None) -> Path:
    """A checkpoint of the same model whose matrices are integers of 8 bits, with scales."""
    folder = plain.parent / "packed"
    folder.mkdir(exist_ok=True)
    tensors = load_file(plain / "model.safetensors")
    for name, values in [*tensors.items()]:
        if name.endswith("proj.weight"):
            scale = values.abs().amax(1, keepdim=True) / 127
            tensors[name] = (values / scale).round().to(torch.int8)
            tensors[f"{name}_scale"] = scale
    if change:
        change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    about = json.loads((plain / "config.json").read_text("utf-8"))
    about["quantization_config"] = SETTINGS if settings is None else settings
    (folder / "config.json").write_text(json.dumps(about), "utf-8")
    return folder


def quantised(model: Any, folder: Path, **settings: Any) -> Any:
    """The model as transformers has it that loaded it quantised."""
    loaded = copy.deepcopy(model)
    loaded.config.name_or_path = str(folder)
    method = SimpleNamespace(quant_method="int8", to_dict=lambda: settings)
    loaded.hf_quantizer = SimpleNamespace(quantization_config=method)
    return loaded


def test_a_checkpoint_of_plain_weights_agrees_with_the_model(plain: Path, model: Any) -> None:
    assert checkpoint_fingerprint(plain) == fingerprint(model)


def test_a_quantised_checkpoint_has_another(plain: Path) -> None:
    found = checkpoint_fingerprint(packed(plain))
    assert found not in {checkpoint_fingerprint(plain), ""}
    assert found == checkpoint_fingerprint(packed(plain))


def _lowest_bit(tensors: dict[str, Tensor]) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    words = tensors[name].view(torch.int32)
    words ^= 1
    tensors[name] = words.view(torch.int8)


def _scale(tensors: dict[str, Tensor]) -> None:
    tensors["model.layers.1.mlp.up_proj.weight_scale"] *= 1.01


@pytest.mark.parametrize("change", [_lowest_bit, _scale])
def test_packed_values_and_scales_count(plain: Path, change: Any) -> None:
    before = checkpoint_fingerprint(packed(plain))
    assert checkpoint_fingerprint(packed(plain, change)) != before


def test_the_lowest_bits_of_packed_words_count(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}", "utf-8")
    prints = set()
    for last in (1, 2):
        words = torch.full((64,), 2**30 + last, dtype=torch.int32)
        save_file({"qweight": words}, tmp_path / "model.safetensors")
        prints.add(checkpoint_fingerprint(tmp_path))
    assert len(prints) == 2


def test_floats_of_8_bits_are_read(plain: Path) -> None:
    def to_float8(tensors: dict[str, Tensor], by: float) -> None:
        for name in [name for name in tensors if name.endswith("proj.weight")]:
            tensors[name] = (tensors[name].float() * by).to(torch.float8_e4m3fn)

    prints = {
        checkpoint_fingerprint(packed(plain, lambda t, by=by: to_float8(t, by))) for by in (1, 2)
    }
    assert len(prints) == 2


def test_the_settings_of_the_quantisation_count(plain: Path) -> None:
    dynamic = SETTINGS | {"activations": "dynamic"}
    assert checkpoint_fingerprint(packed(plain, settings=dynamic)) != checkpoint_fingerprint(
        packed(plain)
    )


def test_a_model_loaded_from_quantised_weights_has_that_of_its_checkpoint(
    plain: Path, model: Any
) -> None:
    folder = packed(plain)
    loaded = quantised(model, folder)
    assert fingerprint(loaded) == checkpoint_fingerprint(folder)
    assert str(quantisation_of(loaded)) == "compressed-tensors"
    at_load = quantised(model, plain)
    assert str(quantisation_of(at_load)) == "int8 when transformers loads it"
    assert quantisation_of(model) is None


def test_what_is_quantised_at_load_is_not_taken_for_the_checkpoint(plain: Path, model: Any) -> None:
    bare = checkpoint_fingerprint(plain)
    prints = {bare, fingerprint(quantised(model, plain, bits=8))}
    prints.add(fingerprint(quantised(model, plain, bits=4)))
    assert len(prints) == 3
    assert fingerprint(quantised(model, plain, bits=8)) in prints


def test_a_quantised_model_without_its_checkpoint_is_refused(tmp_path: Path, model: Any) -> None:
    with pytest.raises(UnreadableWeights, match="is quantised .*load it from a folder"):
        fingerprint(quantised(model, tmp_path / "gone"))


class Packed(Tensor):
    """A tensor of integers and scales, as torchao's: its values cannot be read by index."""

    qdata: Tensor
    scale: Tensor

    @staticmethod
    def __new__(cls, qdata: Tensor, scale: Tensor) -> Packed:
        made: Packed = Tensor._make_wrapper_subclass(cls, qdata.shape, dtype=scale.dtype)  # type: ignore[attr-defined]
        made.qdata, made.scale = qdata, scale
        return made

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["qdata", "scale"], None

    @classmethod
    def __torch_dispatch__(
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function is torch.ops.aten.detach.default:
            return Packed(args[0].qdata, args[0].scale)
        raise NotImplementedError(str(function))


def test_weights_that_were_packed_in_place_are_read_by_their_parts() -> None:
    prints = set()
    for value, size in ((1, 1.0), (2, 1.0), (1, 2.0)):
        module = nn.Module()
        whole = Packed(torch.full((4, 4), value, dtype=torch.int8), torch.full((4, 1), size))
        module.register_parameter("weight", nn.Parameter(whole, requires_grad=False))
        prints.add(fingerprint(module))
    assert len(prints) == 3


def test_fused_experts_are_told_by_their_checkpoint(tmp_path: Path) -> None:
    made = tiny_model("mixtral")
    made.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert any(name.endswith("experts.gate_up_proj") for name, _ in loaded.named_parameters())
    assert fingerprint(loaded) == checkpoint_fingerprint(tmp_path) != fingerprint(made)
    other = tiny_model("mixtral", seed=1)
    other.save_pretrained(tmp_path / "other")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "other")
    assert fingerprint(again) != fingerprint(loaded)
