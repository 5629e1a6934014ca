"""Conversion of image encoders to the served folder: graph and card."""

from __future__ import annotations

from pathlib import Path

import onnx

from classifiers.embeddings.encoders import sha256
from classifiers.images import efficientnet_onnx
from classifiers.images.card import GRAPH, ImageEncoderCard, Preparation
from classifiers.images.efficientnet_onnx import Weights

OPEN_NSFW = Preparation(
    resize=256,
    crop=224,
    filtering="bilinear",
    channels="BGR",
    layout="NHWC",
    mean=(104.0, 117.0, 123.0),
    scale=1.0,
    jpeg=True,
)
"""As Yahoo's `classify_nsfw.py` prepares an image: the network learned from JPEG files."""


def write_efficientnet(weights: Weights, source: Path, target: Path, *, name: str) -> None:
    """Write EfficientNet-Lite0 of `weights`, which were read from the file `source`, to `target`.

    Raises ValueError for weights of another network.
    """
    model = efficientnet_onnx.to_onnx(weights)
    width = model.graph.output[0].type.tensor_type.shape.dim[-1].dim_value
    _write(model, source, target, name, "efficientnet-lite0", width, efficientnet_onnx.PREPARATION)


def write_open_nsfw(source: Path, target: Path, *, name: str) -> None:
    """Write Open-NSFW, the graph in `source`, to `target`, ended before its softmax.

    An embedding is its two logits, of "safe" and of "nudity". Raises ValueError for another graph.
    """
    model = onnx.load(source)
    last = model.graph.node[-1]
    if last.op_type != "Softmax" or len(model.graph.output) != 1:
        raise ValueError(f"{source.name} does not end in a softmax: it is not Open-NSFW")
    output = model.graph.output[0]
    output.name = last.input[0]
    del model.graph.node[-1]
    width = output.type.tensor_type.shape.dim[-1].dim_value
    _write(model, source, target, name, "open-nsfw", width, OPEN_NSFW)


def _write(
    model: onnx.ModelProto,
    source: Path,
    target: Path,
    name: str,
    architecture: str,
    width: int,
    preparation: Preparation,
) -> None:
    (target / GRAPH).write_bytes(model.SerializeToString(deterministic=True))
    ImageEncoderCard(
        name=name,
        architecture=architecture,
        source=sha256(source),
        graph=sha256(target / GRAPH),
        width=width,
        preparation=preparation,
    ).write(target)
