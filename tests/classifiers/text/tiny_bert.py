"""A small BERT with random weights, and a reference of its embeddings."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file
from scipy.special import erf
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

WIDTH, HEADS, LAYERS, INNER = 32, 4, 3, 64
WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefghijklmnopqrstuvwxyz")
CONFIG = {
    "model_type": "bert",
    "hidden_act": "gelu",
    "hidden_size": WIDTH,
    "num_attention_heads": HEADS,
    "num_hidden_layers": LAYERS,
    "layer_norm_eps": 1e-12,
}

Weights = dict[str, NDArray[np.float32]]


def weights(seed: int = 0) -> Weights:
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> NDArray[np.float32]:
        return rng.normal(0, 0.3, shape).astype(np.float32)

    tensors = {
        "embeddings.word_embeddings.weight": normal(len(WORDS), WIDTH),
        "embeddings.position_embeddings.weight": normal(128, WIDTH),
        "embeddings.token_type_embeddings.weight": normal(2, WIDTH),
        "embeddings.LayerNorm.weight": 1 + normal(WIDTH),
        "embeddings.LayerNorm.bias": normal(WIDTH),
    }
    for layer in range(LAYERS):
        prefix = f"encoder.layer.{layer}."
        shapes = {
            "attention.self.query": (WIDTH, WIDTH),
            "attention.self.key": (WIDTH, WIDTH),
            "attention.self.value": (WIDTH, WIDTH),
            "attention.output.dense": (WIDTH, WIDTH),
            "intermediate.dense": (INNER, WIDTH),
            "output.dense": (WIDTH, INNER),
        }
        for name, shape in shapes.items():
            tensors[f"{prefix}{name}.weight"] = normal(*shape)
            tensors[f"{prefix}{name}.bias"] = normal(shape[0])
        for name in ("attention.output", "output"):
            tensors[f"{prefix}{name}.LayerNorm.weight"] = 1 + normal(WIDTH)
            tensors[f"{prefix}{name}.LayerNorm.bias"] = normal(WIDTH)
    return tensors


def write(folder: Path, seed: int = 0) -> Path:
    """Write the files for a conversion to `folder`; each letter is a token."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights(seed), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG), "utf-8")
    letters = Tokenizer(models.WordPiece({word: at for at, word in enumerate(WORDS)}))
    letters.normalizer = normalizers.Lowercase()
    letters.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.Split("", "isolated")]
    )
    letters.save(str(folder / "tokenizer.json"))
    return folder


def reference(
    tensors: Weights, ids: list[int], layers: int = LAYERS, heads: int = HEADS
) -> NDArray[np.float32]:
    """The embedding `[width]` of one row, after the paper's equations."""

    def linear(name: str, x: NDArray[np.float32]) -> NDArray[np.float32]:
        return x @ tensors[f"{name}.weight"].T + tensors[f"{name}.bias"]

    def normal(name: str, x: NDArray[np.float32]) -> NDArray[np.float32]:
        centred = x - x.mean(-1, keepdims=True)
        spread = np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-12)
        return (
            centred / spread * tensors[f"{name}.LayerNorm.weight"]
            + tensors[f"{name}.LayerNorm.bias"]
        )

    x = tensors["embeddings.word_embeddings.weight"][ids]
    x = x + tensors["embeddings.position_embeddings.weight"][: len(ids)]
    x = normal("embeddings", x + tensors["embeddings.token_type_embeddings.weight"][0])
    for layer in range(layers):
        prefix = f"encoder.layer.{layer}."
        q, k, v = (
            linear(f"{prefix}attention.self.{part}", x).reshape(len(ids), heads, -1).swapaxes(0, 1)
            for part in ("query", "key", "value")
        )
        scores = q @ k.swapaxes(1, 2) / np.sqrt(q.shape[-1])
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = (shares / shares.sum(-1, keepdims=True) @ v).swapaxes(0, 1).reshape(x.shape)
        x = normal(
            f"{prefix}attention.output", linear(f"{prefix}attention.output.dense", mixed) + x
        )
        inner = linear(f"{prefix}intermediate.dense", x)
        inner = inner * 0.5 * (1 + erf(inner / np.sqrt(2)))
        x = normal(f"{prefix}output", linear(f"{prefix}output.dense", inner) + x)
    mean = x.mean(0)
    return np.asarray(mean / np.linalg.norm(mean), np.float32)
