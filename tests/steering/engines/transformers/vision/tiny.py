"""Small vision-language models of random weights, one a family, with their tokenizers and
processors. The answers of transformers' own `generate` are the expected ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
import transformers
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, ProcessorMixin

from tests.steering.engines.transformers.vision.family import TEXT, WIDTH, WINDOW, Family
from tests.steering.engines.transformers.vision.tiny_tiles import TILED

Image = NDArray[np.uint8]
Messages = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Tiny:
    """A small model with its processor."""

    model: Any
    processor: Any

    @property
    def tokenizer(self) -> Any:
        return self.processor.tokenizer

    def inputs(self, *chats: Messages) -> Any:
        """What the family's own processor makes of some chats: a batch, padded on the left."""
        texts = [
            self.tokenizer.apply_chat_template(
                list(chat), tokenize=False, add_generation_prompt=True
            )
            for chat in chats
        ]
        images = [images_of(chat) for chat in chats]
        return self.processor(
            text=texts,
            images=images if any(images) else None,
            padding=True,
            padding_side="left",
            add_special_tokens=False,
            return_tensors="pt",
        )

    def generated(self, tokens: int, *chats: Messages) -> list[list[int]]:
        """The answers of transformers' greedy search to the chats, in one batch."""
        inputs = self.inputs(*chats)
        answers = self.model.generate(**inputs, **greedy(tokens))
        return answers[:, inputs["input_ids"].shape[1] :].tolist()  # type: ignore[no-any-return]

    def save(self, folder: Path) -> Path:
        """The checkpoint as it is published: weights, tokenizer, image processor, template."""
        self.model.save_pretrained(folder)
        self.processor.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        return folder


def greedy(tokens: int) -> dict[str, Any]:
    """Arguments of `generate` for exactly so many tokens."""
    return {
        "max_new_tokens": tokens,
        "min_new_tokens": tokens,
        "do_sample": False,
        "eos_token_id": None,
        "pad_token_id": 0,
    }


def images_of(chat: Messages) -> list[PIL.Image.Image]:
    """The images of a chat, in their order; transformers guesses the axes of arrays."""
    parts = [part for message in chat for part in message["content"] if isinstance(part, Mapping)]
    return [PIL.Image.fromarray(part["image"]) for part in parts if part["type"] == "image"]


def ask(text: str, *images: Image) -> list[dict[str, Any]]:
    """One question about images."""
    parts: list[dict[str, Any]] = [{"type": "image", "image": image} for image in images]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


def image(height: int, width: int, seed: int = 0) -> Image:
    """Random blocks of colour, `[height, width, 3]`."""
    generator = np.random.default_rng(seed)
    blocks = generator.integers(0, 256, (4, 4, 3), np.uint8)
    rows, columns = np.arange(height) * 4 // height, np.arange(width) * 4 // width
    return np.ascontiguousarray(blocks[rows[:, None], columns[None]])


def tiny(kind: str, *, seed: int = 0, **changes: Any) -> Tiny:
    """The small model of a family, float32, in eval mode; `changes` are of its text part."""
    family = FAMILIES[kind]
    tokenizer = byte_tokenizer(family)
    ids = {name: tokenizer.convert_tokens_to_ids(name) for name in family.special}
    config = family.config(ids | {"vocabulary": len(tokenizer)})
    for name, value in changes.items():
        setattr(config.get_text_config(), name, value)
    torch.manual_seed(seed)
    model = transformers.AutoModelForImageTextToText.from_config(config).eval()
    # a placeholder that is generated would count as one more image, where nothing is cached
    model.get_output_embeddings().weight.data[config.image_token_id] = 0.0
    return Tiny(_varied(model), family.processor(tokenizer))


def _varied(model: Any) -> Any:
    """Parameters that start as zeros or ones, as those of norms and Gemma's projector: varied, so
    that no answer is blind to what they scale."""
    with torch.no_grad():
        for parameter in model.parameters():
            if bool((parameter == parameter.flatten()[0]).all()):
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def byte_tokenizer(family: Family) -> Any:
    """One token a byte, but runs of two and three newlines, which real vocabularies have too."""
    characters = sorted(pre_tokenizers.ByteLevel.alphabet())
    newline = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str("\n")[0][0]
    words = [*characters, 2 * newline, 3 * newline]
    merges = [(newline, newline), (2 * newline, newline)]
    tokenizer = Tokenizer(
        models.BPE(vocab={word: at for at, word in enumerate(words)}, merges=merges)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=family.special[0],
        bos_token=family.special[1],
        eos_token=family.special[2],
        extra_special_tokens=dict(family.names),
        padding_side="left",
    )
    fast.add_tokens([AddedToken(name, special=True) for name in family.special])
    fast.chat_template = family.template
    return fast


# -- Qwen ---------------------------------------------------------------------------------------

_CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_QWEN_SPECIAL = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"),
    *("<|image_pad|>", "<|video_pad|>"),
)


def _qwen_ids(ids: Mapping[str, int]) -> dict[str, Any]:
    return {
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
        "tie_word_embeddings": False,
    }


def _qwen_text(ids: Mapping[str, int], sections: list[int]) -> dict[str, Any]:
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": sections}
    special = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": ids["<|endoftext|>"]}
    return TEXT | special | {"vocab_size": ids["vocabulary"], "rope_parameters": rope}


def _qwen2_vl(ids: Mapping[str, int]) -> Any:
    tower = {"depth": 2, "embed_dim": 32, "hidden_size": WIDTH, "num_heads": 2, "patch_size": 4}
    # head_dim is not read: heads of 32 / 2 = 16
    text = _qwen_text(ids, [2, 3, 3]) | {"num_attention_heads": 2, "num_key_value_heads": 1}
    tower |= {"mlp_ratio": 2, "initializer_range": 0.3}
    return transformers.Qwen2VLConfig(text_config=text, vision_config=tower, **_qwen_ids(ids))


def _qwen2_5_vl(ids: Mapping[str, int]) -> Any:
    tower = {
        "depth": 2,
        "hidden_size": 32,
        "out_hidden_size": WIDTH,
        "intermediate_size": 64,
        "num_heads": 2,
        "patch_size": 4,
        # windows of 2 x 2 merged patches in all blocks but one
        "window_size": 16,
        "fullatt_block_indexes": [1],
        "initializer_range": 0.3,
    }
    text = _qwen_text(ids, [2, 3, 3]) | {"num_attention_heads": 2, "num_key_value_heads": 1}
    return transformers.Qwen2_5_VLConfig(text_config=text, vision_config=tower, **_qwen_ids(ids))


def _qwen3_vl(ids: Mapping[str, int]) -> Any:
    tower = {
        "depth": 3,
        "hidden_size": 32,
        "out_hidden_size": WIDTH,
        "intermediate_size": 64,
        "num_heads": 2,
        "patch_size": 4,
        "num_position_embeddings": 16,
        "deepstack_visual_indexes": [0, 1],
        "initializer_range": 0.3,
    }
    text = _qwen_text(ids, [4, 2, 2])
    return transformers.Qwen3VLConfig(text_config=text, vision_config=tower, **_qwen_ids(ids))


class _QwenImages(transformers.Qwen2VLProcessor):  # type: ignore[misc]
    """The family's processor without the one for videos, which needs torchvision."""

    def __init__(self, image_processor: Any, tokenizer: Any, chat_template: Any = None) -> None:
        for kind in ("image", "video"):
            setattr(self, f"{kind}_token", f"<|{kind}_pad|>")
            number = tokenizer.convert_tokens_to_ids(f"<|{kind}_pad|>")
            setattr(self, f"{kind}_token_id", number)
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)


def _qwen_processor(tokenizer: Any) -> ProcessorMixin:
    from transformers.models.qwen2_vl import image_processing_pil_qwen2_vl as images

    limits = {"shortest_edge": 64, "longest_edge": 2304}
    return _QwenImages(
        images.Qwen2VLImageProcessorPil(patch_size=4, merge_size=2, size=limits), tokenizer
    )


# -- Gemma --------------------------------------------------------------------------------------

_TURNS = (
    "{{ bos_token }}{% for message in messages %}<start_of_turn>"
    "{{ 'model' if message['role'] == 'assistant' else message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] | trim }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<start_of_image>"
    "{% else %}{{ part['text'] | trim }}{% endif %}{% endfor %}{% endif %}<end_of_turn>\n"
    "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)


def _gemma3(ids: Mapping[str, int]) -> Any:
    text = TEXT | {
        "vocab_size": ids["vocabulary"],
        "pad_token_id": ids["<pad>"],
        "bos_token_id": ids["<bos>"],
        "eos_token_id": ids["<eos>"],
        # narrower than an image, which has 16 tokens
        "sliding_window": WINDOW,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    }
    tower = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 16,
        "patch_size": 4,
    }
    return transformers.Gemma3Config(
        text_config=text,
        vision_config=tower | {"initializer_range": 0.3},
        mm_tokens_per_image=16,
        image_token_index=ids["<image_soft_token>"],
        image_token_id=ids["<image_soft_token>"],
        boi_token_index=ids["<start_of_image>"],
        eoi_token_index=ids["<end_of_image>"],
        tie_word_embeddings=False,
    )


def _gemma_processor(tokenizer: Any) -> ProcessorMixin:
    from transformers.models.gemma3 import image_processing_pil_gemma3 as images

    pixels = images.Gemma3ImageProcessorPil(size={"height": 16, "width": 16})
    return transformers.Gemma3Processor(pixels, tokenizer, image_seq_length=16)


FAMILIES = TILED | {
    "qwen2_vl": Family(_QWEN_SPECIAL, _CHATML, _qwen2_vl, _qwen_processor, {}),
    "qwen2_5_vl": Family(_QWEN_SPECIAL, _CHATML, _qwen2_5_vl, _qwen_processor, {}),
    "qwen3_vl": Family(_QWEN_SPECIAL, _CHATML, _qwen3_vl, _qwen_processor, {}),
    "gemma3": Family(
        (
            *("<pad>", "<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"),
            *("<start_of_image>", "<end_of_image>", "<image_soft_token>"),
        ),
        _TURNS,
        _gemma3,
        _gemma_processor,
        {
            "boi_token": "<start_of_image>",
            "eoi_token": "<end_of_image>",
            "image_token": "<image_soft_token>",
        },
    ),
}
