"""A tiny random Stable Diffusion on disk, with guards fitted on its text encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

from guard.artifact import Artifact, ArtifactMeta
from steering.engines.diffusion.families import Family, family_of
from steering.engines.diffusion.seams.projections import text_projections
from steering.fingerprint import fingerprint
from steering.methods.prompt_score import discriminant
from steering.methods.subspaces import pooled

TOKENS, WIDTH, SIDE = 12, 16, 16
NAN_WORD = "void"
WORDS = ["<pad>", "<s>", "</s>", "<unk>", "a", "cat", "dog", "knife", "blade", NAN_WORD]


def _tokenizer() -> PreTrainedTokenizerFast:
    backend = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>")
    )
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=TOKENS,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
    )


def save_pipeline(folder: Path, *, seed: int = 0) -> Family:
    """Write a pipeline for images of 16 by 16 pixels; the embedding of `NAN_WORD` is NaN."""
    torch.manual_seed(seed)
    encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(WORDS),
            hidden_size=WIDTH,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=TOKENS,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
            # large weights: words differ at every position
            initializer_range=0.5,
        )
    ).eval()
    with torch.no_grad():
        encoder.get_input_embeddings().weight[WORDS.index(NAN_WORD)] = torch.nan
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
    )
    vae = AutoencoderKL(
        block_out_channels=[4, 8],
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        layers_per_block=1,
        norm_num_groups=2,
    )
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=encoder,
        tokenizer=_tokenizer(),
        unet=unet,
        scheduler=DDIMScheduler(clip_sample=False, set_alpha_to_one=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)
    return family_of(pipeline)


def save_guards(folder: Path, family: Family) -> None:
    """`knife`, `guide` and `overlay` fire on knives; `other` is fitted on another encoder."""
    with torch.no_grad():
        text = {
            kind: family.encode(prompts)
            for kind, prompts in {
                "unsafe": ["knife knife", "a knife", "knife " * 10, "blade blade", "a blade"],
                "safe": ["cat", "a cat", "a dog", "cat " * 10, "dog dog dog", ""],
                "knife": ["knife"],
            }.items()
        }
    states = {kind: encoded.states["text"] for kind, encoded in text.items()}
    weights, bias = discriminant(
        pooled(states["unsafe"], text["unsafe"].masks["text"]),
        pooled(states["safe"], text["safe"].masks["text"]),
        0.1,
    )
    scored = {"weights.text": weights.numpy()}
    basis = np.linalg.qr(weights.double().numpy()[:, None])[0].T
    anchors = states["safe"][:, 1].numpy()
    settings = {"threshold": 0.5, "strength": 1.0, "streams": ["text"], "bias": bias}
    tensors = {"basis.text": basis, "anchors.text": anchors, **scored}
    concept = {"concept.text": states["knife"][0].numpy(), "mask.text": np.ones(TOKENS, "f4")}
    encoders = fingerprint(nn.ModuleDict(dict(family.encoders)))
    for name, method, fitted_on, arrays in (
        ("knife", "nearest", encoders, tensors),
        ("other", "nearest", "0" * 64, tensors),
        ("guide", "negative-prompt", encoders, concept | scored),
    ):
        seam = "guidance" if name == "guide" else "embedding"
        _save(folder / f"{name}.safetensors", method, seam, fitted_on, arrays, settings)
    save_overlay(folder / "overlay.safetensors", family, scored, settings | {"encoders": encoders})


def save_overlay(
    path: Path, family: Family, tensors: dict[str, Any], settings: dict[str, Any], **changed: Any
) -> None:
    """One of two random directions, on all projections of `family`'s denoiser."""
    generator = torch.Generator().manual_seed(5)
    layers = text_projections(family.cross_attention())
    overlay = {"reads.0": 0.3 * torch.randn(2, WIDTH, generator=generator).numpy()}
    for name, layer in layers.items():
        writes = torch.randn(2, layer.out_features, generator=generator)
        overlay[f"writes.{name}"] = writes.numpy()
    groups = {"groups": {"0": list(layers)}} | changed
    fitted_on = fingerprint(family.denoiser)
    _save(path, "uce", "projection", fitted_on, tensors | overlay, settings | groups)


def save_eraser(
    path: Path, family: Family, *, fitted_on: str = "", channels: int = 0, **changed: Any
) -> None:
    """An IRECE guard that finds bright areas of the first channel and replaces them with zero.

    It inspects once, at the last evaluation. `changed` are settings, or tensors by their names.
    """
    layer, module = next(iter(family.readable.items()))
    net = torch.zeros(1, 1, channels or family.channels, 3, 3)
    net[0, 0, 0, 1, 1] = 1.0
    generator = torch.Generator().manual_seed(6)
    width = module.inner_dim // module.heads  # type: ignore[operator]
    keys = torch.randn(2, 2, width, generator=generator)
    tensors: dict[str, Any] = {
        **{"weight0.latents": net, "bias0.latents": torch.zeros(1, 1)},
        **{"weight1.latents": torch.full((1, 1, 1, 1, 1), 4.0), "bias1.latents": torch.zeros(1, 1)},
        **{"keys0.attention": keys[0], "others0.attention": keys[1]},
    }
    settings: dict[str, Any] = {
        **{"threshold": 0.0, "strength": 1.0, "reads": [[layer, 0]], "votes": 100.0, "mask": 0.0},
        **{"smoothing": 0.01, "replacement": "zero", "level": 1.0, "looks": 1},
    }
    tensors |= {name: changed.pop(name) for name in list(changed) if name in tensors}
    networks = fitted_on or fingerprint(nn.ModuleDict(family.networks))
    _save(path, "irece", ("attention", "latent"), networks, tensors, settings | changed)


def save_screen(path: Path, family: Family) -> None:
    """A classifier of output latents that finds its concept in bright areas."""
    net = torch.zeros(1, 1, family.channels, 3, 3)
    net[0, 0, 0, 1, 1] = 1.0
    tensors = {"weight0.latents": net, "bias0.latents": torch.zeros(1, 1)}
    tensors |= {"weight1.latents": torch.full((1, 1, 1, 1, 1), 4.0)}
    tensors |= {"bias1.latents": torch.zeros(1, 1)}
    _save(path, "latents", "latent", fingerprint(family.autoencoder), tensors, {"threshold": 0.0})


def _save(
    path: Path,
    method: str,
    seam: str | tuple[str, ...],
    fitted_on: str,
    tensors: dict[str, Any],
    settings: dict[str, Any],
) -> None:
    meta = ArtifactMeta.model_validate(
        {
            "method": method,
            "concept": "object/knife",
            "created": "2026-01-31",
            "model": {
                "name": "tiny",
                "architecture": "StableDiffusionPipeline",
                "fingerprint": fitted_on,
                "layers": 1,
                "width": WIDTH,
            },
            "seams": [seam] if isinstance(seam, str) else list(seam),
            "settings": settings | ({} if seam == "embedding" else {"gated": True}),
        }
    )
    Artifact(meta, {name: np.asarray(values, "f4") for name, values in tensors.items()}).save(path)
