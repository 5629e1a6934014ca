"""Vision-language models of random weights on disk, as vLLM reads those that are published."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerFast

from tests.steering.tiny import LAYERS, VOCABULARY
from tests.vllm.checkpoint import WIDTH, save_tokenizer
from tests.vllm.vision.absent import Videos
from tests.vllm.vision.pictures import SIDE

_TEXT: dict[str, Any] = {
    "hidden_size": WIDTH,
    "intermediate_size": 128,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    # wide enough that greedy answers vary instead of repeating one token
    "initializer_range": 0.3,
    "tie_word_embeddings": False,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_HEAD = {"head_dim": 32}
_TOWER: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": SIDE,
    "patch_size": 14,
    "initializer_range": 0.2,
}
_CHAT = (
    "{% for message in messages %}{% if message.content is string %}{{ message.content }} "
    "{% else %}{% for part in message.content %}{% if part.type == 'text' %}{{ part.text }} "
    "{% else %}IMAGE {% endif %}{% endfor %}{% endif %}{% endfor %}"
)


LLAVA_TOKENS = 16
"""Tokens of an image of the kind "llava"."""

_MARKERS = {"paligemma": "", "gemma3": "<start_of_image>"}


def spelling(kind: str) -> str:
    """How an image is spelled in a prompt for the processor of a kind."""
    return _QWEN if kind.startswith("qwen") else _MARKERS.get(kind, "<image>")


def save_model(folder: Path, kind: str) -> None:
    """A model of one of `KINDS`, of the depth and width of the other tests' model."""
    save_tokenizer(folder)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    torch.manual_seed(0)
    model, processor = KINDS[kind](tokenizer)
    template = _CHAT.replace("IMAGE", spelling(kind))
    processor.tokenizer.chat_template = processor.chat_template = template
    processor.save_pretrained(folder)
    # beside the processor's: some of vLLM's families read the image processor by itself
    processor.image_processor.save_pretrained(folder)
    model.eval().save_pretrained(folder)
    path = folder / "model.safetensors"
    weights = {_published(name): tensor for name, tensor in load_file(path).items()}
    save_file(weights, path, {"format": "pt"})


def _published(name: str) -> str:
    """A weight's name in published checkpoints, the only one that vLLM knows, where that which
    transformers gives it differs."""
    tower = "vision_tower."
    return name.replace(tower, f"{tower}vision_model.") if name.startswith(tower) else name


def _text(name: str, tokenizer: Any, **changes: Any) -> Any:
    config = getattr(transformers, name)
    return config(**_TEXT | {"vocab_size": len(tokenizer)} | changes)


def _llava(tokenizer: Any) -> tuple[Any, Any]:
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**_TOWER | {"image_size": 2 * SIDE}),
        text_config=_text("LlamaConfig", tokenizer),
        image_token_index=VOCABULARY,
        vision_feature_select_strategy="default",
        vision_feature_layer=-1,
        image_seq_length=LLAVA_TOKENS,
        initializer_range=0.3,
    )
    images = transformers.CLIPImageProcessor(
        size={"shortest_edge": 2 * SIDE}, crop_size={"height": 2 * SIDE, "width": 2 * SIDE}
    )
    processor = transformers.LlavaProcessor(
        images,
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token="<image>",
    )
    return transformers.LlavaForConditionalGeneration(config), processor


def _llava_siglip(tokenizer: Any) -> tuple[Any, Any]:
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    config = transformers.LlavaConfig(
        vision_config=transformers.SiglipVisionConfig(**_TOWER),
        text_config=_text("LlamaConfig", tokenizer),
        image_token_index=VOCABULARY,
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
        image_seq_length=4,
        initializer_range=0.3,
    )
    processor = transformers.LlavaProcessor(
        transformers.SiglipImageProcessor(size={"height": SIDE, "width": SIDE}),
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="full",
        image_token="<image>",
    )
    return transformers.LlavaForConditionalGeneration(config), processor


def _llava_next(tokenizer: Any) -> tuple[Any, Any]:
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    pinpoints = [[SIDE, 2 * SIDE], [2 * SIDE, SIDE]]
    config = transformers.LlavaNextConfig(
        vision_config=transformers.CLIPVisionConfig(**_TOWER),
        text_config=_text("LlamaConfig", tokenizer),
        image_token_index=VOCABULARY,
        vision_feature_select_strategy="default",
        vision_feature_layer=-1,
        image_grid_pinpoints=pinpoints,
        initializer_range=0.3,
    )
    images = transformers.LlavaNextImageProcessor(
        size={"shortest_edge": SIDE},
        crop_size={"height": SIDE, "width": SIDE},
        image_grid_pinpoints=pinpoints,
    )
    processor = transformers.LlavaNextProcessor(
        images,
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token="<image>",
    )
    return transformers.LlavaNextForConditionalGeneration(config), processor


def _paligemma(tokenizer: Any) -> tuple[Any, Any]:
    tokenizer.add_tokens(["\n"])
    images = transformers.SiglipImageProcessor(size={"height": SIDE, "width": SIDE})
    images.image_seq_length = 4
    processor = transformers.PaliGemmaProcessor(images, tokenizer)
    config = transformers.PaliGemmaConfig(
        vision_config=transformers.SiglipVisionConfig(**_TOWER),
        text_config=_text("GemmaConfig", tokenizer, **_HEAD),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        projection_dim=WIDTH,
    )
    return transformers.PaliGemmaForConditionalGeneration(config), processor


def _gemma3(tokenizer: Any) -> tuple[Any, Any]:
    named = {
        "boi_token": "<start_of_image>",
        "eoi_token": "<end_of_image>",
        "image_token": "<image_soft_token>",
    }
    tokenizer = PreTrainedTokenizerFast.from_pretrained(
        tokenizer.name_or_path, extra_special_tokens=named
    )
    # vLLM joins the line feeds around an image with those of the text
    tokenizer.add_tokens(["\n" * count for count in (1, 2, 3, 4)])
    tower = _TOWER | {"image_size": 2 * SIDE}
    ids = {f"{name}_index": getattr(tokenizer, f"{name}_id") for name in named}
    text = _text(
        "Gemma3TextConfig",
        tokenizer,
        **_HEAD,
        sliding_window=40,
        layer_types=["sliding_attention", "full_attention"] * 2,
    )
    config = transformers.Gemma3Config(
        vision_config=transformers.SiglipVisionConfig(**tower),
        text_config=text,
        mm_tokens_per_image=4,
        tie_word_embeddings=False,
        **ids,
    )
    model = transformers.Gemma3ForConditionalGeneration(config)
    # zero by default: all images would be alike
    torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight)
    images = transformers.Gemma3ImageProcessor(size={"height": 2 * SIDE, "width": 2 * SIDE})
    processor = transformers.Gemma3Processor(images, tokenizer, image_seq_length=4)
    return model, processor


def _idefics3(tokenizer: Any, name: str = "Idefics3") -> tuple[Any, Any]:
    cells = [f"<row_{i + 1}_col_{j + 1}>" for i in range(6) for j in range(6)]
    tokenizer.add_special_tokens(
        {
            "additional_special_tokens": [
                "<fake_token_around_image>",
                "<image>",
                "<end_of_utterance>",
                "<global-img>",
                *cells,
            ]
        }
    )
    of = lambda each: getattr(transformers, f"{name}{each}")  # noqa: E731
    config = of("Config")(
        vision_config=of("VisionConfig")(**_TOWER),
        text_config=_text("LlamaConfig", tokenizer),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        pad_token_id=0,
    )
    images = of("ImageProcessor")(
        size={"longest_edge": 2 * SIDE}, max_image_size={"longest_edge": SIDE}
    )
    videos = (Videos(),) if name == "SmolVLM" else ()
    processor = of("Processor")(images, tokenizer, *videos, image_seq_len=1)
    return of("ForConditionalGeneration")(config), processor


def _smolvlm(tokenizer: Any) -> tuple[Any, Any]:
    return _idefics3(tokenizer, "SmolVLM")


_QWEN_TOKENS = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
_QWEN = f"{_QWEN_TOKENS[0]}{_QWEN_TOKENS[2]}{_QWEN_TOKENS[1]}"


def _qwen(
    tokenizer: Any, name: str, vision: Mapping[str, Any], text: Mapping[str, Any]
) -> tuple[Any, Any]:
    tokenizer.add_special_tokens({"additional_special_tokens": _QWEN_TOKENS})
    start, end, image, video = tokenizer.convert_tokens_to_ids(_QWEN_TOKENS)
    of = lambda each: getattr(transformers, f"{name}{each}")  # noqa: E731
    sizes = {"patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2, "num_heads": 2}
    config = of("Config")(
        vision_config={**sizes, "depth": 2, "initializer_range": 0.2, **vision},
        text_config=_text(f"{name}TextConfig", tokenizer, **text).to_dict(),
        image_token_id=image,
        video_token_id=video,
        vision_start_token_id=start,
        vision_end_token_id=end,
    )
    images = transformers.Qwen2VLImageProcessor(
        size={"shortest_edge": SIDE * SIDE, "longest_edge": 16 * SIDE * SIDE}
    )
    processor = of("Processor")(images, tokenizer, Videos())
    return of("ForConditionalGeneration")(config), processor


def _rope(*, interleaved: bool = False) -> dict[str, Any]:
    rope = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [4, 6, 6]}
    return {"rope_parameters": rope | ({"mrope_interleaved": True} if interleaved else {})}


def _qwen2_vl(tokenizer: Any) -> tuple[Any, Any]:
    return _qwen(tokenizer, "Qwen2VL", {"embed_dim": 64, "hidden_size": WIDTH}, _rope())


def _qwen2_5_vl(tokenizer: Any) -> Any:
    vision = {
        "hidden_size": 64,
        "out_hidden_size": WIDTH,
        "intermediate_size": 64,
        "fullatt_block_indexes": [1],
        "window_size": 56,
    }
    return _qwen(tokenizer, "Qwen2_5_VL", vision, _rope())


def _qwen3_vl(tokenizer: Any) -> Any:
    vision = {
        "hidden_size": 64,
        "out_hidden_size": WIDTH,
        "intermediate_size": 64,
        "num_position_embeddings": 16,
        "deepstack_visual_indexes": [0, 1],
    }
    return _qwen(tokenizer, "Qwen3VL", vision, _HEAD | _rope(interleaved=True))


KINDS: Mapping[str, Callable[[Any], tuple[Any, Any]]] = {
    "llava": _llava,
    "llava-siglip": _llava_siglip,
    "llava_next": _llava_next,
    "paligemma": _paligemma,
    "gemma3": _gemma3,
    "idefics3": _idefics3,
    "smolvlm": _smolvlm,
    "qwen2_vl": _qwen2_vl,
    "qwen2_5_vl": _qwen2_5_vl,
    "qwen3_vl": _qwen3_vl,
}
"""For each its maker: of the model and the processor, from a tokenizer."""
