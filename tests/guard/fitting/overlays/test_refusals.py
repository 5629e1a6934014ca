"""Files that are no overlay of the base are refused by name."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from guard.errors import DataError
from guard.fitting.overlays.reading import read_difference
from tests.guard.fitting.overlays.checkpoints import base, pipeline, spm_file, whole_network

KEY = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
KOHYA = f"lora_unet_{KEY.replace('.', '_')}"

State = dict[str, Tensor]


def weight() -> Tensor:
    """The base's weight of `KEY`, `[16, 16]`."""
    return base().networks[""].get_submodule(KEY).weight.detach().clone()


def factors(rank: int = 2, rows: int = 16, columns: int = 16) -> State:
    return {
        f"{KOHYA}.lora_down.weight": torch.ones(rank, columns),
        f"{KOHYA}.lora_up.weight": torch.ones(rows, rank),
    }


def with_nan() -> State:
    changed = weight()
    changed[3, 4] = torch.nan
    return {f"{KEY}.weight": changed}


FILES: dict[str, tuple[Callable[[], State], str]] = {
    "an unknown layout": (
        lambda: {"blocks.0.weight": torch.ones(2)},
        "has 1 of 1 weights that the base has not, 'blocks.0.weight' the first",
    ),
    "the original layout": (
        lambda: {"model.diffusion_model.input_blocks.0.0.weight": torch.ones(2)},
        "original layout of Stable Diffusion; load it with diffusers' from_single_file",
    ),
    "a base of other widths": (
        lambda: {f"{KEY}.weight": torch.ones(16, 12)},
        r"is \[16, 12\], where the base has \[16, 16\]: it is of another model",
    ),
    "another base of the same shapes": (
        lambda: {f"{KEY}.weight": weight() + torch.randn(16, 16)},
        "differs from the base by .*% of its weights in the median layer",
    ),
    "NaN": (with_nan, f"'{KEY}.weight' holds NaN or infinite values"),
    "quantised weights": (
        lambda: {f"{KEY}.weight": torch.ones(16, 16, dtype=torch.int8)},
        "has dtype I8: save the weights unquantised",
    ),
    "no difference": (
        lambda: {f"{KEY}.weight": weight()},
        "is no different from the base: nothing",
    ),
    "biases alone": (
        lambda: {"conv_in.bias": base().networks[""].get_parameter("conv_in.bias").detach() + 1},
        "only in 1 other weights: nothing to import",
    ),
    "no weights": (dict, "has no weights"),
    "factors of another width": (
        lambda: factors(columns=12),
        r"are \[2, 12\] and \[16, 2\], which does not fit a layer of \[16, 16\]",
    ),
    "factors of two ranks": (
        lambda: factors() | {f"{KOHYA}.lora_up.weight": torch.ones(16, 3)},
        r"are \[2, 16\] and \[16, 3\], which does not fit",
    ),
    "factors of no rank": (
        lambda: factors(rank=0) | {f"{KOHYA}.alpha": torch.tensor(4.0)},
        r"are \[0, 16\] and \[16, 0\], which does not fit",
    ),
    "a factor that is a number": (
        lambda: factors() | {f"{KOHYA}.lora_down.weight": torch.tensor(1.0)},
        r"are \[\] and \[16, 2\], which does not fit",
    ),
    "several alphas for one layer": (
        lambda: factors() | {f"{KOHYA}.alpha": torch.ones(2)},
        r"alpha' is \[2\], where an alpha is one number",
    ),
    "a factor without the other": (
        lambda: {f"{KOHYA}.lora_up.weight": torch.ones(16, 2)},
        f"lacks the down factor of '{KOHYA}'",
    ),
    "factors of zeros": (
        lambda: factors() | {f"{KOHYA}.lora_up.weight": torch.zeros(16, 2)},
        "is no different from the base",
    ),
    "a layer that the base has not": (
        lambda: {
            "lora_unet_middle_block_9.lora_up.weight": torch.ones(16, 2),
            "lora_unet_middle_block_9.lora_down.weight": torch.ones(2, 16),
        },
        "'lora_unet_middle_block_9', which is no layer of the base",
    ),
    "a network that the base has not": (
        lambda: {
            "lora_te2_encoder_layers_0_mlp_fc1.lora_up.weight": torch.ones(16, 2),
            "lora_te2_encoder_layers_0_mlp_fc1.lora_down.weight": torch.ones(2, 16),
        },
        "for text_encoder_2, which the base has not",
    ),
    "another kind of adapter": (
        lambda: {f"{KOHYA}.hada_w1_a": torch.ones(16, 2)},
        "of a LoHa adapter, which is no product of two factors: merge it",
    ),
    "an adapter of magnitudes": (
        lambda: factors() | {f"{KOHYA}.dora_scale": torch.ones(16)},
        "of a DoRA adapter",
    ),
    "an adapter with something else": (
        lambda: factors() | {"modules_to_save.weight": torch.ones(16)},
        "'modules_to_save.weight', which is no factor of a layer: merge it",
    ),
    "two overlays for one layer": (
        lambda: (
            factors()
            | {f"unet.{KEY}.lora_A.weight": torch.ones(2, 16)}
            | {f"unet.{KEY}.lora_B.weight": torch.ones(16, 2)}
        ),
        f"has two overlays for one layer, {KEY}",
    ),
    "a factor twice": (
        lambda: {f"unet.{KEY}.lora_A.{n}.weight": torch.ones(2, 16) for n in "ab"},
        "has two overlays for one layer: ",
    ),
    "PEFT without its settings": (
        lambda: {f"base_model.model.{KEY}.lora_A.weight": torch.ones(2, 16)},
        "is an adapter of PEFT without its adapter_config.json",
    ),
}


@pytest.mark.parametrize("fault", FILES)
def test_a_file_with(fault: str, tmp_path: Path) -> None:
    write, message = FILES[fault]
    save_file(write(), tmp_path / "file.safetensors")
    with pytest.raises(DataError, match=message) as error:
        read_difference(tmp_path / "file.safetensors", base())
    assert "file.safetensors" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["delta.bin", "esd.pt"])
def test_a_pickle_is_refused_with_how_to_convert_it(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(pickle.dumps({}))
    for source in (tmp_path / name, tmp_path):
        with pytest.raises(
            DataError, match=r"is a pickle.*weights_only=True\).*\.safetensors'\)\""
        ):
            read_difference(source, base())


def test_what_is_not_there_or_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        read_difference(tmp_path / "nothing", base())
    with pytest.raises(DataError, match="has no weights in .safetensors files"):
        read_difference(tmp_path, base())
    (tmp_path / "notes.txt").write_text("a")
    with pytest.raises(DataError, match="is no .safetensors file"):
        read_difference(tmp_path / "notes.txt", base())
    (tmp_path / "a.safetensors").write_text("a")
    with pytest.raises(DataError, match="a.safetensors: is no safetensors file"):
        read_difference(tmp_path, base())
    (tmp_path / "b.safetensors").write_text("a")
    with pytest.raises(DataError, match="has 2 .safetensors files: name one of them"):
        read_difference(tmp_path, base())


SHARDS: list[object] = ["../a.safetensors", "..", "a\0.safetensors", ["a.safetensors"], {}, None, 3]
INDICES = ["[]", "{", *(json.dumps({"weight_map": {"a": shard}}) for shard in SHARDS)]


@pytest.mark.parametrize("index", INDICES)
def test_an_index_names_files_beside_it(index: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(DataError, match="index.json: (cannot be read|has no weight_map)"):
        read_difference(tmp_path, base())


def test_peft_settings_of_another_rank(tmp_path: Path) -> None:
    state = {
        f"base_model.model.{KEY}.lora_A.weight": torch.ones(2, 16),
        f"base_model.model.{KEY}.lora_B.weight": torch.ones(16, 2),
    }
    save_file(state, tmp_path / "adapter_model.safetensors")
    config = '{"peft_type": "LORA", "r": 4, "lora_alpha": 4, "target_modules": ["to_k"]}'
    (tmp_path / "adapter_config.json").write_text(config)
    with pytest.raises(DataError, match="has the rank 2, and its settings say 4"):
        read_difference(tmp_path, base())
    (tmp_path / "adapter_config.json").write_text(config.replace("LORA", "LOHA"))
    with pytest.raises(DataError, match="is of the type 'LOHA'"):
        read_difference(tmp_path, base())


def test_what_cannot_be_served_is_dropped_by_name(tmp_path: Path) -> None:
    changed = pipeline()
    with torch.no_grad():
        for parameter in (*changed.unet.parameters(), *changed.text_encoder.parameters()):
            parameter *= 1.01
    changed.save_pretrained(tmp_path)
    difference = read_difference(tmp_path, base())
    assert difference.dropped.keys() == {"biases", "norms", "embeddings"}
    assert "conv_in.bias" in difference.dropped["biases"]
    assert any("norm1" in name for name in difference.dropped["norms"])
    assert all("embedding" in name for name in difference.dropped["embeddings"])
    total = sum(1 for network in (changed.unet, changed.text_encoder) for _ in network.parameters())
    dropped = sum(map(len, difference.dropped.values()))
    assert len(difference.changes) + dropped == total


def test_a_component_can_be_named(tmp_path: Path) -> None:
    source, expected = whole_network(tmp_path / "mine")
    with pytest.raises(DataError, match="weights that the base has not"):
        read_difference(source, base(), "text_encoder")
    for name in ("unet", ""):
        assert len(read_difference(source, base(), name).changes) == len(expected)
    state = load_file(next(source.glob("*.safetensors")) if source.is_dir() else source)
    save_file({f"unet.{key}": values for key, values in state.items()}, tmp_path / "p.safetensors")
    with pytest.raises(DataError, match="--component: the base has no 'vae': it has unet, text_"):
        read_difference(tmp_path / "p.safetensors", base(), "vae")


def test_an_alpha_scales_a_layer(tmp_path: Path) -> None:
    path, _ = spm_file(tmp_path)
    state = load_file(path)
    name = next(n for n in state if n.endswith(".alpha"))
    save_file(state | {name: torch.tensor(0.25)}, tmp_path / "less.safetensors")
    whole, less = (
        read_difference(p, base()).changes for p in (path, tmp_path / "less.safetensors")
    )
    changed = [n for n in whole if not torch.equal(whole[n].write, less[n].write)]  # type: ignore[arg-type]
    assert len(changed) == 1
