"""A small model that sees images, in vLLM, in a process of its own: `-m` with a folder.

Prints, as JSON behind a mark, the answer to the same words beside each of two images, under each of
some policies, twice.
"""

from __future__ import annotations

import json
import os
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    GemmaConfig,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PaliGemmaProcessor,
    PreTrainedTokenizerFast,
    SiglipImageProcessor,
    SiglipVisionConfig,
)

from tests.vllm.checkpoint import WIDTH, save_tokenizer
from tests.vllm.play import MARK

WORDS = list(range(5, 70))


def save_model(folder: Path) -> None:
    """A PaliGemma of random weights, as vLLM reads it: four tokens for an image of 28 x 28."""
    save_tokenizer(folder)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    tokenizer.add_tokens(["\n"])
    images = SiglipImageProcessor(size={"height": 28, "width": 28})
    images.image_seq_length = 4
    processor = PaliGemmaProcessor(images, tokenizer)
    processor.save_pretrained(folder)
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32}
    text = GemmaConfig(
        vocab_size=len(processor.tokenizer) + 8,
        hidden_size=WIDTH,
        intermediate_size=128,
        num_hidden_layers=4,
        max_position_embeddings=512,
        **heads,
    )
    vision = SiglipVisionConfig(
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
    )
    config = PaliGemmaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=processor.tokenizer.convert_tokens_to_ids("<image>"),
        projection_dim=WIDTH,
    )
    torch.manual_seed(0)
    PaliGemmaForConditionalGeneration(config).save_pretrained(folder)
    path = folder / "model.safetensors"
    # by the names of published checkpoints
    named = {
        name.replace("vision_tower.", "vision_tower.vision_model."): tensor
        for name, tensor in load_file(path).items()
    }
    save_file(named, path, {"format": "pt"})


def main() -> None:
    """Ask."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    # vLLM looks whether the encoder is a Pixtral, whose module needs torchvision
    pixtral = types.ModuleType("vllm.model_executor.models.pixtral")
    pixtral.PixtralHFEncoderInfo = pixtral.PixtralVisionConfig = type("Absent", (), {})  # type: ignore[attr-defined]
    sys.modules[pixtral.__name__] = pixtral
    from vllm import LLM, SamplingParams

    llm = LLM(
        str(Path(sys.argv[1]) / "model"),
        dtype="float32",
        enforce_eager=True,
        max_model_len=200,
        max_num_seqs=4,
        block_size=32,
        limit_mm_per_prompt={"image": 1},
        seed=0,
    )
    told: list[dict[str, Any]] = []
    for policy in ("none", "watch", "firm", "watch", "firm", "none"):
        for seed in (0, 1):
            pixels = np.random.default_rng(seed).integers(0, 255, (28, 28, 3), dtype=np.uint8)
            prompt = {
                "prompt_token_ids": WORDS,
                "multi_modal_data": {"image": Image.fromarray(pixels)},
            }
            sampling = SamplingParams(
                temperature=0,
                max_tokens=6,
                ignore_eos=True,
                detokenize=False,
                extra_args={"guard_policy": policy},
            )
            (output,) = llm.generate([prompt], sampling, use_tqdm=False)
            guard = getattr(output, "guard", None)
            told.append(
                {
                    "policy": policy,
                    "image": seed,
                    "tokens": list(output.outputs[0].token_ids),
                    "cached": output.num_cached_tokens,
                    "guards": guard["guards"] if guard else None,
                }
            )
    print(MARK + json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
