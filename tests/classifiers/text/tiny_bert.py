"""A BERT of random weights, small enough for every test, and what it should give."""

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
    draw = np.random.default_rng(seed)

    def normal(*shape: int) -> NDArray[np.float32]:
        return draw.normal(0, 0.3, shape).astype(np.float32)

    found = {
        "embeddings.word_embeddings.weight": normal(len(WORDS), WIDTH),
        "embeddings.position_embeddings.weight": normal(128, WIDTH),
        "embeddings.token_type_embeddings.weight": normal(2, WIDTH),
        "embeddings.LayerNorm.weight": 1 + normal(WIDTH),
        "embeddings.LayerNorm.bias": normal(WIDTH),
    }
    for layer in range(LAYERS):
        own = f"encoder.layer.{layer}."
        shapes = {
            "attention.self.query": (WIDTH, WIDTH),
            "attention.self.key": (WIDTH, WIDTH),
            "attention.self.value": (WIDTH, WIDTH),
            "attention.output.dense": (WIDTH, WIDTH),
            "intermediate.dense": (INNER, WIDTH),
            "output.dense": (WIDTH, INNER),
        }
        for name, shape in shapes.items():
            found[f"{own}{name}.weight"] = normal(*shape)
            found[f"{own}{name}.bias"] = normal(shape[0])
        for name in ("attention.output", "output"):
            found[f"{own}{name}.LayerNorm.weight"] = 1 + normal(WIDTH)
            found[f"{own}{name}.LayerNorm.bias"] = normal(WIDTH)
    return found


def write(folder: Path, seed: int = 0) -> Path:
    """The files that a conversion starts from; each letter is a token."""
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
    found: Weights, ids: list[int], layers: int = LAYERS, heads: int = HEADS
) -> NDArray[np.float32]:
    """The embedding `[width]` of one row, after the paper's equations."""

    def linear(name: str, x: NDArray[np.float32]) -> NDArray[np.float32]:
        return x @ found[f"{name}.weight"].T + found[f"{name}.bias"]

    def normal(name: str, x: NDArray[np.float32]) -> NDArray[np.float32]:
        centred = x - x.mean(-1, keepdims=True)
        spread = np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-12)
        return (
            centred / spread * found[f"{name}.LayerNorm.weight"] + found[f"{name}.LayerNorm.bias"]
        )

    x = found["embeddings.word_embeddings.weight"][ids]
    x = x + found["embeddings.position_embeddings.weight"][: len(ids)]
    x = normal("embeddings", x + found["embeddings.token_type_embeddings.weight"][0])
    for layer in range(layers):
        own = f"encoder.layer.{layer}."
        q, k, v = (
            linear(f"{own}attention.self.{part}", x).reshape(len(ids), heads, -1).swapaxes(0, 1)
            for part in ("query", "key", "value")
        )
        scores = q @ k.swapaxes(1, 2) / np.sqrt(q.shape[-1])
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = (shares / shares.sum(-1, keepdims=True) @ v).swapaxes(0, 1).reshape(x.shape)
        x = normal(f"{own}attention.output", linear(f"{own}attention.output.dense", mixed) + x)
        inner = linear(f"{own}intermediate.dense", x)
        inner = inner * 0.5 * (1 + erf(inner / np.sqrt(2)))
        x = normal(f"{own}output", linear(f"{own}output.dense", inner) + x)
    mean = x.mean(0)
    return np.asarray(mean / np.linalg.norm(mean), np.float32)
