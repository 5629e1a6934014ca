"""Tiny checkpoints and adapters, written by the libraries whose files users have."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from diffusers.utils import convert_state_dict_to_kohya
from peft import LoraConfig, get_peft_model
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from guard.fitting.images.imported import base_of
from guard.fitting.overlays.base import Base
from guard.fitting.overlays.changes import Change
from tests.steering.engines.diffusion import tiny

ATTENTION = ("to_k", "to_v", "to_q", "to_out.0")
CONVOLUTIONS = ("proj_in", "proj_out", "conv1")
ENCODER = ("q_proj", "out_proj", "fc1")


def base() -> Base:
    return base_of(tiny.shared("stable diffusion"))


def pipeline() -> Any:
    """A copy of the base's pipeline to change."""
    return copy.deepcopy(tiny.shared("stable diffusion").pipeline)


def perturb(
    network: nn.Module, *parts: str, size: float = 0.01, seed: int = 0
) -> dict[str, Tensor]:
    """Add noise to the parameters whose names have one of `parts`; returns what was added."""
    generator = torch.Generator().manual_seed(seed)
    added = {}
    for name, parameter in network.named_parameters():
        if any(part in name for part in parts):
            added[name] = size * torch.randn(parameter.shape, generator=generator)
            parameter.data += added[name]
    return added


def with_adapter(network: Any, targets: tuple[str, ...], **settings: Any) -> Any:
    """The network as PEFT wraps it, its factors random."""
    config = LoraConfig(**{"r": 2, "lora_alpha": 6, "target_modules": [*targets]} | settings)
    wrapped = get_peft_model(network, config)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name:
            parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)
    return wrapped


def merged(wrapped: Any, before: nn.Module) -> dict[str, Tensor]:
    """What PEFT adds to each weight when it merges an adapter."""
    after = dict(copy.deepcopy(wrapped).merge_and_unload().named_parameters())
    return {
        name: after[name].detach() - parameter.detach()
        for name, parameter in before.named_parameters()
        if bool((after[name] != parameter).any())
    }


def delta(change: Change) -> Tensor:
    """`ΔW` in full."""
    if change.write is None:
        return change.read
    flat = change.write @ change.read.flatten(1)
    return flat.reshape(len(change.write), *change.read.shape[1:])


def deltas(changes: Mapping[str, Change]) -> dict[str, Tensor]:
    """By the name of the weight, with `COMPONENT:` before those of text encoders."""
    return {f"{layer}.weight": delta(change) for layer, change in changes.items()}


def factors(wrapped: Any) -> dict[str, Tensor]:
    """The factors by their names in the network itself, as training scripts pass them on."""
    state: dict[str, Tensor] = get_peft_model_state_dict(wrapped)
    return {name.removeprefix("base_model.model."): values for name, values in state.items()}


Written = tuple[Path, dict[str, Tensor]]
"""A file or folder, and what it changes, by the names of `deltas`."""


def _adapted(targets: tuple[str, ...], **settings: Any) -> tuple[Any, dict[str, Tensor]]:
    changed = pipeline()
    wrapped = with_adapter(changed.unet, targets, **settings)
    return wrapped, merged(wrapped, pipeline().unet)


def _adapted_encoder(**settings: Any) -> tuple[Any, dict[str, Tensor]]:
    changed = pipeline()
    wrapped = with_adapter(changed.text_encoder, ENCODER, **settings)
    added = merged(wrapped, pipeline().text_encoder)
    return wrapped, {f"text_encoder:{name}": values for name, values in added.items()}


def peft_folder(folder: Path) -> Written:
    wrapped, added = _adapted(ATTENTION + CONVOLUTIONS, alpha_pattern={"attn2.to_k": 5})
    wrapped.save_pretrained(folder)
    return folder, added


def peft_folders(folder: Path) -> Written:
    """As PEFT's examples save a pipeline: a folder for each network."""
    wrapped, added = _adapted(ATTENTION, use_rslora=True)
    wrapped.save_pretrained(folder / "unet")
    encoder, of_encoder = _adapted_encoder()
    encoder.save_pretrained(folder / "text_encoder")
    return folder, added | of_encoder


def diffusers_file(folder: Path) -> Written:
    """With PEFT's settings in the header."""
    wrapped, added = _adapted(ATTENTION, rank_pattern={"attn1.to_q": 3})
    encoder, of_encoder = _adapted_encoder(lora_alpha=1)
    StableDiffusionPipeline.save_lora_weights(
        folder,
        unet_lora_layers=factors(wrapped),
        text_encoder_lora_layers=factors(encoder),
        unet_lora_adapter_metadata=wrapped.peft_config["default"].to_dict(),
        text_encoder_lora_adapter_metadata=encoder.peft_config["default"].to_dict(),
    )
    return folder / "pytorch_lora_weights.safetensors", added | of_encoder


def diffusers_without_settings(folder: Path) -> Written:
    """As diffusers wrote it before: no settings, the scale is 1."""
    wrapped, added = _adapted(ATTENTION, lora_alpha=2)
    StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=factors(wrapped))
    return folder, added


def diffusers_of_one_network(folder: Path) -> Written:
    changed = pipeline().unet
    changed.add_adapter(LoraConfig(r=2, lora_alpha=6, target_modules=[*ATTENTION]))
    for name, parameter in changed.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    changed.save_lora_adapter(folder)
    changed.fuse_lora()
    before = dict(pipeline().unet.named_parameters())
    after = {n.replace(".base_layer", ""): p.detach() for n, p in changed.named_parameters()}
    added = {n: after[n] - before[n] for n in before if bool((after[n] != before[n]).any())}
    return folder, added


def attention_processors(folder: Path) -> Written:
    """As the first LoRA scripts of diffusers named them."""
    wrapped, added = _adapted(ATTENTION, lora_alpha=2)
    renamed = {}
    for name, values in factors(wrapped).items():
        path, _, factor = name.partition(".lora_")
        module, _, part = path.removesuffix(".0").rpartition(".")
        side = {"A.weight": "down", "B.weight": "up"}[factor]
        renamed[f"unet.{module}.processor.{part}_lora.{side}.weight"] = values
    save_file(renamed, folder / "old.safetensors")
    return folder / "old.safetensors", added


def kohya_file(folder: Path) -> Written:
    """Of both networks, as diffusers converts it for kohya-ss's tools, with alphas."""
    wrapped, added = _adapted(ATTENTION + CONVOLUTIONS)
    encoder, of_encoder = _adapted_encoder(lora_alpha=1)
    state = {}
    for prefix, network, alpha in (("lora_unet", wrapped, 6.0), ("lora_te", encoder, 1.0)):
        state |= _kohya(factors(network), prefix, alpha)
    save_file(state, folder / "kohya.safetensors")
    return folder / "kohya.safetensors", added | of_encoder


def _kohya(state: Mapping[str, Tensor], prefix: str, alpha: float) -> dict[str, Tensor]:
    text = "text_model." if prefix == "lora_te" else ""
    plain = {f"{text}{name}": values for name, values in state.items()}
    converted = {}
    for name, values in convert_state_dict_to_kohya(plain).items():
        stem = name.partition(".")[0].removeprefix("lora_")
        stem = f"{prefix}_{stem.removeprefix('te_').removeprefix('unet_')}"
        suffix = name.partition(".")[2]
        converted[f"{stem}.{suffix}"] = torch.tensor(alpha) if suffix == "alpha" else values
    return converted


def spm_file(folder: Path) -> Written:
    """As SPM saves it: rank 1, alpha 1, of the layers in the transformer blocks."""
    state, added = {}, {}
    generator = torch.Generator().manual_seed(3)
    for path, module in pipeline().unet.named_modules():
        if ".attentions." not in path or not isinstance(module, nn.Linear | nn.Conv2d):
            continue
        down = 0.1 * torch.randn(1, *module.weight.shape[1:], generator=generator)
        up = torch.randn(len(module.weight), 1, *[1] * (down.ndim - 2), generator=generator)
        stem = f"lora_unet_{path}".replace(".", "_")
        state |= {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up}
        state[f"{stem}.alpha"] = torch.tensor(1.0)
        added[f"{path}.weight"] = (up.flatten(1) @ down.flatten(1)).reshape(module.weight.shape)
    save_file(state, folder / "spm.safetensors")
    return folder / "spm.safetensors", added


def whole_pipeline(folder: Path) -> Written:
    changed = pipeline()
    added = perturb(changed.unet, "attn2.to_k.weight", "conv1.weight")
    encoder = perturb(changed.text_encoder, "fc1.weight")
    changed.save_pretrained(folder)
    return folder, added | {f"text_encoder:{name}": values for name, values in encoder.items()}


def whole_network(folder: Path) -> Written:
    """One network, in shards."""
    changed = pipeline().unet
    added = perturb(changed, "attn1.to_out.0.weight")
    changed.save_pretrained(folder, max_shard_size="100KB")
    return folder, added


def whole_encoder(folder: Path) -> Written:
    """As AdvUnlearn publishes it: a text encoder by itself, with the names of its release."""
    changed = pipeline().text_encoder
    added = perturb(changed, "q_proj.weight")
    changed.save_pretrained(folder)
    path = folder / "model.safetensors"
    state = load_file(path)
    save_file({f"text_model.{n.removeprefix('text_model.')}": t for n, t in state.items()}, path)
    return folder, {f"text_encoder:{name}": values for name, values in added.items()}


def some_layers(folder: Path) -> Written:
    """As ESD saves it: the trained parameters alone, biases among them, in bfloat16."""
    changed = pipeline().unet.to(torch.bfloat16)
    before = {name: parameter.detach().clone() for name, parameter in changed.named_parameters()}
    perturb(changed, "attn2")
    state = {n: p.detach() for n, p in changed.named_parameters() if "attn2" in n}
    save_file(state, folder / "esd-a_knife-from-a_knife-esdx.safetensors")
    added = {
        name: values.float() - before[name].float()
        for name, values in state.items()
        if name.endswith("weight")
    }
    return folder / "esd-a_knife-from-a_knife-esdx.safetensors", added


LAYOUTS: dict[str, Callable[[Path], Written]] = {
    "PEFT LoRA": peft_folder,
    "PEFT LoRA, a folder a network": peft_folders,
    "diffusers LoRA": diffusers_file,
    "diffusers LoRA without settings": diffusers_without_settings,
    "diffusers LoRA of one network": diffusers_of_one_network,
    "diffusers LoRA as attention processors": attention_processors,
    "kohya LoRA": kohya_file,
    "kohya LoRA of SPM": spm_file,
    "weights of a pipeline": whole_pipeline,
    "weights in shards": whole_network,
    "weights of a text encoder": whole_encoder,
    "weights of some layers": some_layers,
}
