"""From the files of a wheel to the folder of a model, which transformers or diffusers can load."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from guard.errors import ModelError
from guard.models.shipped import shipped

if TYPE_CHECKING:
    from steering.engines.transformers.loading.gguf import Unpacked

EMOJI_WEIGHTS = shipped("examples/emoji/weights")
EMOJI_TOKENS_WEIGHTS = shipped("examples/emoji/tokens/weights")
EMOJI_JUDGE = shipped("examples/emoji/judge-first.onnx")
PORTRAITS_WEIGHTS = shipped("examples/portraits/weights")

MINILM_LAYERS = 3
"""Screens on three layers are as good as on six, in half the time."""


def convert_gguf(folder: Path, target: Path, dtype: str = "float32") -> None:
    """Write the model of the GGUF file in `folder` to `target` as safetensors of `dtype`."""
    model, tokenizer = _unpacked(folder, dtype)
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def _unpacked(folder: Path, dtype: str = "float32") -> Unpacked:
    """The model of the GGUF file in `folder`, in `dtype`, and its tokenizer."""
    # imported here: whoever lists recipes needs no torch
    from transformers.utils import logging

    from steering.engines.transformers.loading.gguf import load_gguf

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # its bars would run through ours
    (gguf,) = folder.rglob("*.gguf")
    return load_gguf(gguf, dtype)


def assemble_portraits(folder: Path, target: Path, weights: Path = PORTRAITS_WEIGHTS) -> None:
    """Write the vision-language model to `target`, in float32: SmolLM2 from `folder` with the
    trained changes of `weights` merged, their tower and projector, a token for images."""
    import torch
    from safetensors.torch import load_file
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    _require_weights(weights / "config.json", "portraits")
    language, tokenizer = _unpacked(folder)
    config: Any = LlavaConfig.from_pretrained(weights)
    state = {f"model.language_model.{n}": w for n, w in language.model.state_dict().items()}
    for name, change in _deltas(load_file(weights / "language.safetensors")):
        state[f"{name}.weight"] += change.float()
    embedding = "model.language_model.embed_tokens.weight"
    rows = config.text_config.vocab_size - len(state[embedding])
    state[embedding] = torch.nn.functional.pad(state[embedding], (0, 0, 0, rows))
    state["lm_head.weight"] = state[embedding]
    seeing = load_file(weights / "vision.safetensors")
    state |= {name: w.float() if w.is_floating_point() else w for name, w in seeing.items()}
    model = LlavaForConditionalGeneration(config)
    model.load_state_dict(state)
    model.save_pretrained(target)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    tokenizer.chat_template = (weights / "chat_template.jinja").read_text("utf-8")
    tokenizer.save_pretrained(target)
    for path in weights.glob("*.json"):
        if path.name != "config.json":
            shutil.copy(path, target / path.name)


def _deltas(trained: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The modules that were trained and the changes of their weights, in float16: `B A` of LoRA
    adapters (`.a`, `.b`), or the change itself (`.delta`)."""
    for name in sorted(trained):
        module, _, part = name.rpartition(".")
        if part == "a":
            # rounded, so that every machine merges to the same bits whatever the order of its sums
            yield module, (trained[f"{module}.b"].double() @ trained[name].double()).half()
        elif part == "delta":
            yield module, trained[name]


def _require_weights(file: Path, name: str) -> None:
    if not file.is_file():
        raise ModelError(
            f"the {name} model's weights are not in {file.parent}: they come with the source "
            "repository, not with the package; clone it and pip install -e it there"
        )


def assemble_emoji(folder: Path, target: Path, weights: Path = EMOJI_WEIGHTS) -> None:
    """Write the emoji pipeline to `target`, in float32: the trained `weights`, and MiniLM from
    `folder`."""
    from safetensors.numpy import load_file, save_file

    _require_weights(weights / "model_index.json", "emoji")
    (minilm,) = (path.parent for path in folder.rglob("model.safetensors"))
    shutil.copytree(weights, target, dirs_exist_ok=True)
    for path in target.rglob("*.safetensors"):
        tensors = {name: tensor.astype("float32") for name, tensor in load_file(path).items()}
        save_file(tensors, path, {"format": "pt"})
    shutil.copy(minilm / "model.safetensors", target / "text_encoder" / "model.safetensors")
    tokenizer = target / "tokenizer"
    settings = json.loads((minilm / "tokenizer_config.json").read_text("utf-8"))
    settings |= json.loads((tokenizer / "tokenizer_config.json").read_text("utf-8"))
    (tokenizer / "tokenizer_config.json").write_text(json.dumps(settings, indent=1), "utf-8")
    for name in ("tokenizer.json", "vocab.txt", "special_tokens_map.json"):
        shutil.copy(minilm / name, tokenizer / name)


def assemble_emoji_tokens(
    _folder: Path,
    target: Path,
    weights: Path = EMOJI_TOKENS_WEIGHTS,
    emoji: Path = EMOJI_WEIGHTS,
) -> None:
    """Write the autoregressive emoji model to `target`, in float32: the trained `weights`, and the
    autoencoder of the `emoji` pipeline."""
    from safetensors.numpy import load_file, save_file

    _require_weights(weights / "config.json", "emoji-tokens")
    shutil.copytree(weights, target, dirs_exist_ok=True)
    shutil.copytree(emoji / "vae", target / "image_decoder", dirs_exist_ok=True)
    for path in target.rglob("*.safetensors"):
        tensors = {name: tensor.astype("float32") for name, tensor in load_file(path).items()}
        save_file(tensors, path, {"format": "pt"})
    description = json.loads((target / "config.json").read_text("utf-8"))
    description["dtype"] = "float32"
    (target / "config.json").write_text(json.dumps(description, indent=2) + "\n", "utf-8")


def convert_e5(folder: Path, target: Path, *, file: str, name: str) -> None:
    """Write Multilingual E5 for the screens of text, in int8."""
    from classifiers.text.encoder.conversion import convert
    from classifiers.text.encoder.e5_file import unpack

    with tempfile.TemporaryDirectory() as unpacked:
        unpack(folder / file, Path(unpacked))
        convert(Path(unpacked), target, name=name, precision="int8", prefix="query:")


def convert_open_nsfw(folder: Path, target: Path) -> None:
    """Write Open-NSFW for the screens of images."""
    from classifiers.images.conversion import write_open_nsfw

    write_open_nsfw(folder / "open_nsfw.onnx", target, name="open-nsfw")


def convert_efficientnet(folder: Path, target: Path) -> None:
    """Write EfficientNet-Lite0 for the screens of images."""
    import torch

    from classifiers.images.conversion import write_efficientnet

    (source,) = folder.glob("*.pth")
    # tensors alone: anything else in the file, whose SHA-256 is pinned, is refused
    state = torch.load(source, map_location="cpu", weights_only=True)
    weights = {name: tensor.float().numpy() for name, tensor in state.items()}
    write_efficientnet(weights, source, target, name="efficientnet-lite0")


def export_minilm(folder: Path, target: Path) -> None:
    """Write MiniLM for the screens of text: its first MINILM_LAYERS layers, in int8."""
    from classifiers.text.encoder.conversion import convert

    convert(folder, target, name="minilm", layers=MINILM_LAYERS, precision="int8")
