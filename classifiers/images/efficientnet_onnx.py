"""EfficientNet-Lite as one ONNX graph, written from its weights without a tracer.

After Tan and Le 2019 (arXiv 1905.11946) and the "Lite" variant of its authors: no squeeze and
excitation, ReLU6. Each batch normalisation is folded into the convolution before it. The graph ends
in the pooled features, scaled to length one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from classifiers.images.card import Preparation

OPSET = 17
SIDE = 224
PREPARATION = Preparation(
    resize=SIDE,
    crop=SIDE,
    filtering="bicubic",
    channels="RGB",
    layout="NCHW",
    mean=(127.0, 127.0, 127.0),
    scale=128.0,
)
_EPSILON = 1e-3
_HALVING = frozenset({1, 3, 5, 11})
"""The blocks of stride 2, of the 16 of Lite0."""

Weights = Mapping[str, NDArray[np.float32]]


def to_onnx(weights: Weights) -> onnx.ModelProto:
    """`images`, float32 `[1, 3, 224, 224]`, to `embeddings`, float32 `[1, width]` of length one.

    The weights have the names of lukemelas' EfficientNet-PyTorch. Raises ValueError where one is
    missing.
    """
    graph = _Graph(weights)
    states = graph.convolution("images", "_conv_stem", "_bn0", stride=2)
    block = 0
    while f"_blocks.{block}._project_conv.weight" in weights:
        prefix, skip = f"_blocks.{block}.", states
        if f"{prefix}_expand_conv.weight" in weights:
            states = graph.convolution(states, f"{prefix}_expand_conv", f"{prefix}_bn0")
        stride = 2 if block in _HALVING else 1
        states = graph.convolution(
            states, f"{prefix}_depthwise_conv", f"{prefix}_bn1", stride=stride, depthwise=True
        )
        states = graph.convolution(states, f"{prefix}_project_conv", f"{prefix}_bn2", clipped=False)
        if stride == 1 and graph.channels[states] == graph.channels[skip]:
            states = graph.add("Add", [states, skip], f"{prefix}sum", graph.channels[states])
        block += 1
    states = graph.convolution(states, "_conv_head", "_bn1")
    width = graph.channels[states]
    pooled = graph.add("GlobalAveragePool", [states], "pooled", width)
    flat = graph.add("Flatten", [pooled], "flat", width)
    graph.add("LpNormalization", [flat], "embeddings", width, axis=-1, p=2)
    return graph.model(width)


class _Graph:
    def __init__(self, weights: Weights) -> None:
        self.channels = {"images": 3}
        """Of each value of the graph."""
        self._weights = weights
        self._nodes: list[onnx.NodeProto] = []
        self._tensors = [
            numpy_helper.from_array(np.array(value, np.float32), name)
            for name, value in (("zero", 0.0), ("six", 6.0))
        ]

    def add(self, kind: str, inputs: list[str], output: str, channels: int, **fields: Any) -> str:
        self._nodes.append(helper.make_node(kind, inputs, [output], **fields))
        self.channels[output] = channels
        return output

    def convolution(
        self,
        states: str,
        name: str,
        normalisation: str,
        *,
        stride: int = 1,
        depthwise: bool = False,
        clipped: bool = True,
    ) -> str:
        """The convolution `name`, its normalisation folded in, and ReLU6 where it is `clipped`."""
        kernel = self._weight(f"{name}.weight")
        gamma, beta, mean, variance = (
            self._weight(f"{normalisation}.{part}")
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        factor = gamma / np.sqrt(variance + _EPSILON)
        self._store(f"{name}.kernel", kernel * factor[:, None, None, None])
        self._store(f"{name}.bias", beta - mean * factor)
        channels = len(kernel)
        output = self.add(
            "Conv",
            [states, f"{name}.kernel", f"{name}.bias"],
            f"{name}.out",
            channels,
            auto_pad="SAME_UPPER",
            strides=[stride, stride],
            group=channels if depthwise else 1,
        )
        if not clipped:
            return output
        return self.add("Clip", [output, "zero", "six"], f"{name}.clipped", channels)

    def model(self, width: int) -> onnx.ModelProto:
        value = helper.make_tensor_value_info
        graph = helper.make_graph(
            self._nodes,
            "efficientnet-lite",
            [value("images", TensorProto.FLOAT, [1, 3, SIDE, SIDE])],
            [value("embeddings", TensorProto.FLOAT, [1, width])],
            self._tensors,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])
        model.ir_version = 8  # what runtimes of two years ago read
        onnx.checker.check_model(model)
        return model

    def _weight(self, name: str) -> NDArray[np.float32]:
        if name not in self._weights:
            raise ValueError(f"the weights are of no EfficientNet-Lite: there is no {name!r}")
        return np.asarray(self._weights[name], np.float32)

    def _store(self, name: str, values: NDArray[np.float32]) -> None:
        self._tensors.append(
            numpy_helper.from_array(np.ascontiguousarray(values, np.float32), name)
        )
