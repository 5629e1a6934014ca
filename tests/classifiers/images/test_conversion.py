"""Converted networks give what their original ones do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch.nn import functional as F

from classifiers.images.conversion import write_efficientnet, write_open_nsfw
from classifiers.images.efficientnet_onnx import SIDE, Weights
from classifiers.images.encoder import ImageEncoder, prepare

BLOCKS = ((8, 8, 1, 3), (8, 12, 2, 3), (12, 12, 2, 5))
"""Channels in and out, expansion and kernel of the blocks of a small network; the second halves."""
EPSILON = 1e-3


def _normal(rng: np.random.Generator, name: str, channels: int) -> dict[str, np.ndarray]:
    return {
        f"{name}.weight": rng.uniform(0.5, 1.5, channels).astype("f4"),
        f"{name}.bias": rng.normal(0, 0.3, channels).astype("f4"),
        f"{name}.running_mean": rng.normal(0, 0.1, channels).astype("f4"),
        f"{name}.running_var": rng.uniform(0.5, 1.5, channels).astype("f4"),
    }


def _weights() -> Weights:
    rng = np.random.default_rng(0)

    def kernel(*shape: int) -> np.ndarray:
        return rng.normal(0, (shape[1] * shape[2] * shape[3]) ** -0.5, shape).astype("f4")

    weights = {"_conv_stem.weight": kernel(8, 3, 3, 3), **_normal(rng, "_bn0", 8)}
    for index, (inside, outside, expansion, size) in enumerate(BLOCKS):
        prefix, middle = f"_blocks.{index}.", inside * expansion
        if expansion > 1:
            weights[f"{prefix}_expand_conv.weight"] = kernel(middle, inside, 1, 1)
            weights |= _normal(rng, f"{prefix}_bn0", middle)
        weights[f"{prefix}_depthwise_conv.weight"] = kernel(middle, 1, size, size)
        weights |= _normal(rng, f"{prefix}_bn1", middle)
        weights[f"{prefix}_project_conv.weight"] = kernel(outside, middle, 1, 1)
        weights |= _normal(rng, f"{prefix}_bn2", outside)
    weights["_conv_head.weight"] = kernel(16, 12, 1, 1)
    return weights | _normal(rng, "_bn1", 16)


def _reference(weights: Weights, images: np.ndarray) -> np.ndarray:
    """The same in torch, with TensorFlow's padding, as the original network has it."""
    tensors = {name: torch.tensor(values) for name, values in weights.items()}

    def step(x: torch.Tensor, name: str, norm: str, stride: int = 1, depth: bool = False):
        kernel = tensors[f"{name}.weight"]
        size = kernel.shape[-1]
        total = max((-(-x.shape[-1] // stride) - 1) * stride + size - x.shape[-1], 0)
        x = F.pad(x, (total // 2, total - total // 2) * 2)
        x = F.conv2d(x, kernel, stride=stride, groups=len(kernel) if depth else 1)
        parts = [tensors[f"{norm}.{part}"] for part in ("running_mean", "running_var")]
        return F.batch_norm(
            x, *parts, tensors[f"{norm}.weight"], tensors[f"{norm}.bias"], eps=EPSILON
        )

    x = F.relu6(step(torch.tensor(images), "_conv_stem", "_bn0", 2))
    for index, (inside, outside, expansion, _) in enumerate(BLOCKS):
        prefix, skip, stride = f"_blocks.{index}.", x, 2 if index == 1 else 1
        if expansion > 1:
            x = F.relu6(step(x, f"{prefix}_expand_conv", f"{prefix}_bn0"))
        x = F.relu6(step(x, f"{prefix}_depthwise_conv", f"{prefix}_bn1", stride, depth=True))
        x = step(x, f"{prefix}_project_conv", f"{prefix}_bn2")
        x = x + skip if stride == 1 and inside == outside else x
    x = F.relu6(step(x, "_conv_head", "_bn1")).mean((2, 3))
    return (x / x.norm(dim=1, keepdim=True)).numpy()


def test_efficientnet_gives_what_its_layers_do(tmp_path: Path) -> None:
    source = tmp_path / "weights.pth"
    source.write_bytes(b"weights")
    weights = _weights()
    write_efficientnet(weights, source, tmp_path, name="tiny")
    encoder = ImageEncoder.load(tmp_path)
    image = np.random.default_rng(1).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    prepared = prepare(image, encoder.card.preparation)
    assert prepared.shape == (3, SIDE, SIDE)
    (embedding,) = encoder.encode([image])
    assert np.abs(embedding - _reference(weights, prepared[None])[0]).max() < 1e-5
    assert encoder.width == 16 and np.linalg.norm(embedding) == pytest.approx(1, abs=1e-5)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    weights = {name: values for name, values in _weights().items() if "_conv_head" not in name}
    source = tmp_path / "weights.pth"
    source.write_bytes(b"weights")
    with pytest.raises(ValueError, match="_conv_head"):
        write_efficientnet(weights, source, tmp_path, name="tiny")


def _classifier(path: Path, *, last: str) -> None:
    """A graph of two logits, the means of blue and of red, with `last` behind them."""
    value = helper.make_tensor_value_info
    picked = helper.make_tensor("picked", TensorProto.INT64, [2], [0, 2])
    graph = helper.make_graph(
        [
            helper.make_node("ReduceMean", ["image"], ["means"], axes=[1, 2], keepdims=0),
            helper.make_node("Gather", ["means", "picked"], ["logits"], axis=1),
            helper.make_node(last, ["logits"], ["out"]),
        ],
        "two",
        [value("image", TensorProto.FLOAT, ["n", 224, 224, 3])],
        [value("out", TensorProto.FLOAT, ["n", 2])],
        [picked],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    onnx.save(model, path)


def test_open_nsfw_gives_its_logits(tmp_path: Path) -> None:
    _classifier(tmp_path / "open_nsfw.onnx", last="Softmax")
    write_open_nsfw(tmp_path / "open_nsfw.onnx", tmp_path, name="two")
    encoder = ImageEncoder.load(tmp_path)
    (logits,) = encoder.encode([np.full((30, 30, 3), (200, 100, 50), np.uint8)])
    assert encoder.width == 2
    # blue less its mean, red less its mean: a grey field survives the compression
    assert logits == pytest.approx([50 - 104, 200 - 123], abs=3)


def test_a_graph_without_softmax_is_refused(tmp_path: Path) -> None:
    _classifier(tmp_path / "open_nsfw.onnx", last="Sigmoid")
    with pytest.raises(ValueError, match="softmax"):
        write_open_nsfw(tmp_path / "open_nsfw.onnx", tmp_path, name="two")
