"""Export of checkpoints to the committed weights: the folder of a pipeline in float16.

The text encoder and the tokenizer are left out, since MiniLM's package has them; `guard models add
emoji` combines both.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

from examples.emoji import denoiser, text

WEIGHTS = Path(__file__).parent / "weights"
_INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "_diffusers_version": "0.35.0",
    "feature_extractor": [None, None],
    "image_encoder": [None, None],
    "requires_safety_checker": False,
    "safety_checker": [None, None],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "text_encoder": ["transformers", "BertModel"],
    "tokenizer": ["transformers", "BertTokenizerFast"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["steering.engines.diffusion.patch_autoencoder", "PatchAutoencoder"],
}


def export(out: Path, weights: Path = WEIGHTS) -> None:
    """Write the averaged weights of the checkpoints in `out` to `weights`."""
    denoiser.averaged(out).save_pretrained(weights / "unet")
    denoiser.scheduler().save_pretrained(weights / "scheduler")
    if (out / "vae").is_dir():  # otherwise the training started from the exported one
        shutil.copytree(out / "vae", weights / "vae", dirs_exist_ok=True)
    for part in ("unet", "vae"):
        path = weights / part / "diffusion_pytorch_model.safetensors"
        halved = {name: tensor.half().contiguous() for name, tensor in load_file(path).items()}
        save_file(halved, path, {"format": "pt"})
    text.config().save_pretrained(weights / "text_encoder")
    (weights / "tokenizer").mkdir(exist_ok=True)
    _write(weights / "tokenizer" / "tokenizer_config.json", {"model_max_length": text.TOKENS})
    _write(weights / "model_index.json", _INDEX)
    for name in ("first", "second"):
        judge = out / f"judge-{name}.onnx"
        if judge.is_file():
            shutil.copy(judge, weights.parent / judge.name)


def _write(path: Path, content: dict[str, object]) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", "utf-8")


def pipeline(out: Path, weights: Path) -> None:
    """Write `weights` and MiniLM as a whole pipeline to `out`, as `guard models add emoji` does."""
    from guard.models.conversion import assemble_emoji

    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    assemble_emoji(text.minilm(), out, weights)
