"""Random pipelines of every family, small enough for a test, each from a fixed seed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLWan,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    WanPipeline,
    WanTransformer3DModel,
)
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn
from transformers import (
    BertConfig,
    BertModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

from steering.engines.diffusion.families import Family, family_of
from steering.engines.diffusion.patch_autoencoder import PatchAutoencoder

WORDS = ("a", "knife", "banana", "cat", "dog", "red", "on", "the", "table", "and", "of", "in")
CLIP_TOKENS, T5_TOKENS = 8, 12


def tokenizer(tokens: int, *, begins: bool = True) -> PreTrainedTokenizerFast:
    """A word a token; a text ends, and mostly begins, with a mark."""
    pieces = ("<pad>", "<unk>", "<bos>", "<eos>", *WORDS)
    made = Tokenizer(models.WordLevel({p: i for i, p in enumerate(pieces)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>" if begins else "$A <eos>",
        special_tokens=[("<bos>", 2), ("<eos>", 3)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        model_max_length=tokens,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<bos>",
        eos_token="<eos>",
    )


def _clip(kind: Any, width: int, projection: int) -> Any:
    config = CLIPTextConfig(
        vocab_size=len(WORDS) + 4,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=CLIP_TOKENS,
        projection_dim=projection,
        bos_token_id=2,
        eos_token_id=3,
        pad_token_id=0,
    )
    return kind(config).eval()


def _t5(width: int) -> Any:
    config = T5Config(
        vocab_size=len(WORDS) + 4,
        d_model=width,
        d_kv=8,
        d_ff=2 * width,
        num_layers=1,
        num_heads=2,
        feed_forward_proj="gated-gelu",
    )
    return T5EncoderModel(config).eval()


def _vae(channels: int, **more: Any) -> Any:
    return AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=channels,
        norm_num_groups=4,
        **more,
    ).eval()


def _unet(channels: int, size: int, width: int, **more: Any) -> Any:
    return UNet2DConditionModel(
        sample_size=size,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=(16, 32),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        attention_head_dim=2,
        norm_num_groups=4,
        cross_attention_dim=width,
        **more,
    ).eval()


def _plain(text_encoder: Any, tokens: Any, unet: Any, vae: Any, scheduler: Any) -> Any:
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokens,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def emoji() -> Any:
    """As the project's pipeline: a BERT encoder with its mask, and a patch autoencoder."""
    config = BertConfig(
        vocab_size=len(WORDS) + 4,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=CLIP_TOKENS,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        use_attention_mask=True,
    )
    scheduler = DDIMScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        clip_sample=False,
        timestep_spacing="trailing",
    )
    return _plain(
        BertModel(config).eval(),
        tokenizer(CLIP_TOKENS),
        _unet(8, 8, 32, only_cross_attention=(True, False)),
        PatchAutoencoder(width=16, blocks=1).eval(),
        scheduler,
    )


def stable_diffusion() -> Any:
    scheduler = DPMSolverMultistepScheduler(beta_schedule="scaled_linear")
    encoder = _clip(CLIPTextModel, 16, 16)
    return _plain(encoder, tokenizer(CLIP_TOKENS), _unet(4, 8, 16), _vae(4), scheduler)


def stable_diffusion_xl() -> Any:
    return StableDiffusionXLPipeline(
        vae=_vae(4),
        text_encoder=_clip(CLIPTextModel, 16, 16),
        text_encoder_2=_clip(CLIPTextModelWithProjection, 24, 20),
        tokenizer=tokenizer(CLIP_TOKENS),
        tokenizer_2=tokenizer(CLIP_TOKENS),
        unet=_unet(
            4,
            8,
            40,
            addition_embed_type="text_time",
            addition_time_embed_dim=4,
            projection_class_embeddings_input_dim=20 + 6 * 4,
        ),
        scheduler=EulerDiscreteScheduler(beta_schedule="scaled_linear"),
        add_watermarker=False,
    )


def stable_diffusion_3(*, t5: bool = True) -> Any:
    return StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=48,
            caption_projection_dim=16,
            pooled_projection_dim=36,
            out_channels=4,
            pos_embed_max_size=8,
        ).eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=_vae(4, shift_factor=0.1),
        text_encoder=_clip(CLIPTextModelWithProjection, 16, 16),
        text_encoder_2=_clip(CLIPTextModelWithProjection, 24, 20),
        text_encoder_3=_t5(48) if t5 else None,
        tokenizer=tokenizer(CLIP_TOKENS),
        tokenizer_2=tokenizer(CLIP_TOKENS),
        tokenizer_3=tokenizer(T5_TOKENS, begins=False) if t5 else None,
    )


def flux(*, distilled: bool = True) -> Any:
    pipeline = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=_vae(2, shift_factor=0.1),
        text_encoder=_clip(CLIPTextModel, 16, 16),
        text_encoder_2=_t5(24),
        tokenizer=tokenizer(CLIP_TOKENS),
        tokenizer_2=tokenizer(T5_TOKENS, begins=False),
        transformer=FluxTransformer2DModel(
            patch_size=1,
            in_channels=8,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=24,
            pooled_projection_dim=16,
            axes_dims_rope=(2, 2, 4),
            guidance_embeds=distilled,
        ).eval(),
    )
    pipeline.default_sample_size = 8
    return pipeline


def pixart() -> Any:
    return PixArtSigmaPipeline(
        tokenizer=tokenizer(T5_TOKENS, begins=False),
        text_encoder=_t5(24),
        vae=_vae(4),
        transformer=PixArtTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=8,
            in_channels=4,
            out_channels=8,
            num_layers=2,
            cross_attention_dim=16,
            sample_size=8,
            patch_size=2,
            caption_channels=24,
            use_additional_conditions=False,
        ).eval(),
        scheduler=DPMSolverMultistepScheduler(),
    )


def wan() -> Any:
    return WanPipeline(
        tokenizer=tokenizer(T5_TOKENS, begins=False),
        text_encoder=_t5(24),
        vae=AutoencoderKLWan(
            base_dim=4,
            z_dim=4,
            dim_mult=[1, 1, 1, 1],
            num_res_blocks=1,
            temperal_downsample=[False, True, True],
            latents_mean=[0.1, -0.2, 0.3, 0.0],
            latents_std=[1.0, 2.0, 0.5, 1.5],
        ).eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        transformer=WanTransformer3DModel(
            patch_size=(1, 2, 2),
            num_attention_heads=2,
            attention_head_dim=12,
            in_channels=4,
            out_channels=4,
            text_dim=24,
            freq_dim=16,
            ffn_dim=32,
            num_layers=2,
            cross_attn_norm=True,
            rope_max_seq_len=16,
        ).eval(),
    )


PIPELINES: dict[str, Callable[[], Any]] = {
    "emoji": emoji,
    "flux": flux,
    "flux, not distilled": lambda: flux(distilled=False),
    "pixart": pixart,
    "stable diffusion": stable_diffusion,
    "stable diffusion 3": stable_diffusion_3,
    "stable diffusion 3 without t5": lambda: stable_diffusion_3(t5=False),
    "stable diffusion xl": stable_diffusion_xl,
    "wan": wan,
}


def built(name: str) -> Family:
    """The family around a fresh pipeline, at sizes that fit a test."""
    torch.manual_seed(0)
    pipeline = PIPELINES[name]()
    _loosen(pipeline)
    pipeline.set_progress_bar_config(disable=True)
    sizes: dict[str, int] = {"height": 16, "width": 16}
    if name == "wan":
        sizes = {"height": 32, "width": 32, "frames": 5}
    family = family_of(pipeline, **({} if name == "emoji" else sizes))
    # so that every row of the tests' tiny T5 stays short
    family.max_tokens = T5_TOKENS
    return family


@cache
def shared(name: str) -> Family:
    """The family of `built`, one for all tests that leave it unchanged."""
    return built(name)


def _loosen(pipeline: Any) -> None:
    """Perturb constant weights (zeros, ones): inputs must have an effect on the image."""
    for component in pipeline.components.values():
        if isinstance(component, nn.Module):
            for parameter in component.parameters():
                flat = parameter.data.flatten()
                if len(flat) < 2 or bool((flat == flat[0]).all()):
                    parameter.data += 0.1 * torch.randn_like(parameter)


def weights_hash(pipeline: Any) -> str:
    """Over every parameter and buffer of every part."""
    digest = hashlib.sha256()
    for name, component in sorted(pipeline.components.items()):
        if isinstance(component, nn.Module):
            for key, tensor in sorted(component.state_dict().items()):
                digest.update(f"{name}.{key}".encode())
                digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()
