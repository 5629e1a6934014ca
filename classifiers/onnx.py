"""Stacked heads as one ONNX graph: one pass of ONNX Runtime scores every loaded concept.

The graph is written with onnx's own helpers, so that no tracer has to be trusted or installed.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from classifiers.heads import Heads

OPSET = 20
"""The first version with Gelu."""


def to_onnx(heads: Heads) -> onnx.ModelProto:
    """`states [rows, tokens, width]` to `logits [rows, heads]`; rows and tokens are free."""
    count, k, width = heads.queries.shape
    constants = {
        "queries": heads.queries.reshape(count * k, width).T,
        "hidden": heads.hidden,
        "hidden_bias": heads.hidden_bias[:, None],
        "out": heads.out[..., None],
        "out_bias": heads.out_bias,
    }
    tensors = [
        numpy_helper.from_array(np.ascontiguousarray(part.detach().cpu().numpy()), name)
        for name, part in constants.items()
    ]
    tensors.append(numpy_helper.from_array(np.array([-1, count, k * width]), "split"))
    node = helper.make_node
    nodes = [
        node("MatMul", ["states", "queries"], ["scores"]),
        node("Softmax", ["scores"], ["attention"], axis=1),
        node("Transpose", ["attention"], ["by_query"], perm=[0, 2, 1]),
        node("MatMul", ["by_query", "states"], ["pooled"]),
        node("Reshape", ["pooled", "split"], ["by_head"]),
        node("Transpose", ["by_head"], ["heads_first"], perm=[1, 0, 2]),
        node("MatMul", ["heads_first", "hidden"], ["linear"]),
        node("Add", ["linear", "hidden_bias"], ["biased"]),
        node("Gelu", ["biased"], ["active"]),
        node("MatMul", ["active", "out"], ["column"]),
        node("Squeeze", ["column", "last"], ["heads_rows"]),
        node("Transpose", ["heads_rows"], ["rows_heads"], perm=[1, 0]),
        node("Add", ["rows_heads", "out_bias"], ["logits"]),
    ]
    tensors.append(numpy_helper.from_array(np.array([2]), "last"))
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "heads",
        [value("states", TensorProto.FLOAT, ["rows", "tokens", width])],
        [value("logits", TensorProto.FLOAT, ["rows", count])],
        tensors,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])
    model.ir_version = 10  # what runtimes of two years ago read
    onnx.checker.check_model(model)
    return model


class Detector:
    """Stacked heads in ONNX Runtime, on the CPU."""

    def __init__(self, heads: Heads) -> None:
        options = onnxruntime.SessionOptions()
        # the product is small: threads would cost more than they bring, and others need them
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            to_onnx(heads).SerializeToString(), options, providers=["CPUExecutionProvider"]
        )

    def __call__(self, states: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits `[rows, heads]` of `states [rows, tokens, width]`."""
        (logits,) = self._session.run(None, {"states": np.ascontiguousarray(states)})
        result: NDArray[np.float32] = logits
        return result
