"""An image encoder of three numbers: the mean of each colour, from -1 to 1."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper
from PIL import Image

from classifiers.embeddings.encoders import sha256
from classifiers.embeddings.heads import EmbeddingHead
from classifiers.images.card import GRAPH, ImageEncoderCard, Preparation
from guard.artifact import Artifact, ArtifactMeta, FittedModel
from guard.models.sources import MANIFEST

SIDE = 8
PREPARATION = Preparation(
    resize=SIDE,
    crop=SIDE,
    filtering="bilinear",
    channels="RGB",
    layout="NCHW",
    mean=(127.5, 127.5, 127.5),
    scale=127.5,
)


def write(folder: Path, name: str = "colours", **preparation: Any) -> ImageEncoderCard:
    """Write the encoder to `folder`, as an added model of that name."""
    folder.mkdir(parents=True, exist_ok=True)
    how = Preparation(**{**_fields(PREPARATION), **preparation})
    axes = [1, 2] if how.layout == "NHWC" else [2, 3]
    shape = [1, how.crop, how.crop, 3] if how.layout == "NHWC" else [1, 3, how.crop, how.crop]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("ReduceMean", ["images"], ["means"], axes=axes, keepdims=0)],
        "colours",
        [value("images", TensorProto.FLOAT, shape)],
        [value("means", TensorProto.FLOAT, [1, 3])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    onnx.save(model, folder / GRAPH)
    graph_sha = sha256(folder / GRAPH)
    card = ImageEncoderCard(name, "colours", "0" * 64, graph_sha, 3, how)
    card.write(folder)
    (folder / MANIFEST).write_text(json.dumps({"name": name}))
    return card


def _fields(how: Preparation) -> dict[str, Any]:
    return {name: getattr(how, name) for name in how.__dataclass_fields__}


def red_screen(card: ImageEncoderCard, path: Path, **settings: Any) -> Path:
    """Write the artifact of a screen that fires on red images."""
    weight = np.array([[8, -4, -4]], np.float32)
    head = EmbeddingHead("logistic", {"weight": weight, "bias": np.full(1, -8, np.float32)})
    meta = ArtifactMeta(
        method="image-screen",
        concept="colour/red",
        created="2026-11-30",
        model=FittedModel(
            name=card.name,
            architecture=card.architecture,
            fingerprint=card.fingerprint,
            layers=1,
            width=card.width,
        ),
        seams=("pixels",),
        settings=head.settings() | {"threshold": 0.5} | settings,
    )
    Artifact(meta, head.tensors()).save(path)
    return path


def plain(colour: str, size: tuple[int, int] = (20, 12)) -> NDArray[np.uint8]:
    """An image of one colour."""
    return np.asarray(Image.new("RGB", size, colour), np.uint8)


def file_of(image: Image.Image | str, form: str = "PNG") -> bytes:
    """The file of an image, or of one of one colour."""
    image = Image.new("RGB", (20, 12), image) if isinstance(image, str) else image
    buffer = io.BytesIO()
    image.save(buffer, form)
    return buffer.getvalue()
