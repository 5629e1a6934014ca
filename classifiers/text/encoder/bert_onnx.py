"""A BERT sentence encoder as one fused ONNX graph, written from its weights without a tracer.

After Devlin et al. 2018 (arXiv 1810.04805); pooled as sentence-transformers does (Reimers and
Gurevych 2019, arXiv 1908.10084): the mean over real tokens, scaled to length one. The nodes are
ONNX Runtime's own fused ones (domain `com.microsoft`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from classifiers.text.encoder.card import WORD_VECTORS

OPSET = 18
FUSED = "com.microsoft"

Weights = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class BertShape:
    """The numbers that the graph of a BERT needs beside its weights."""

    layers: int
    heads: int
    epsilon: float

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> BertShape:
        """The shape in a `config.json`. Raises ValueError where the model is no plain BERT."""
        kind, act = config.get("model_type"), config.get("hidden_act")
        if kind != "bert" or act != "gelu":
            raise ValueError(f"the encoder must be a bert with gelu, not {kind!r} with {act!r}")
        if config.get("position_embedding_type", "absolute") != "absolute":
            raise ValueError("the encoder must have absolute position embeddings")
        return cls(
            layers=int(config["num_hidden_layers"]),
            heads=int(config["num_attention_heads"]),
            epsilon=float(config["layer_norm_eps"]),
        )


def to_onnx(weights: Weights, shape: BertShape, *, padded: bool) -> onnx.ModelProto:
    """`ids`, int32 `[rows, tokens]`, to `embeddings`, float32 `[rows, width]` of length one.

    The number of tokens is free. A `padded` graph takes any number of rows, padded at their ends,
    and a second input `mask`, int32 of the same shape, 1 for a real token and 0 for padding. An
    unpadded graph takes one row at a time, and its attention is faster. Raises ValueError where
    `weights` lacks a tensor.
    """
    graph = _Graph(weights, padded=padded)
    states = _embedded(graph, shape)
    for layer in range(shape.layers):
        states = _layer(graph, shape, f"encoder.layer.{layer}.", states)
    _pooled(graph, states)
    width = weights["embeddings.LayerNorm.weight"].shape[0]
    value = helper.make_tensor_value_info
    names = ("ids", "mask") if padded else ("ids",)
    rows = "rows" if padded else 1
    tokens = [value(name, TensorProto.INT32, [rows, "tokens"]) for name in names]
    embeddings = value("embeddings", TensorProto.FLOAT, [rows, width])
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(FUSED, 1)]
    model = helper.make_model(
        helper.make_graph(graph.nodes, "encoder", tokens, [embeddings], graph.tensors),
        opset_imports=opsets,
    )
    model.ir_version = 10  # what runtimes of two years ago read
    onnx.checker.check_model(model)
    return model


class _Graph:
    """The nodes and tensors of a graph in the making."""

    def __init__(self, weights: Weights, *, padded: bool) -> None:
        self._weights = weights
        self.padded = padded
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[onnx.TensorProto] = []

    def weight(self, name: str) -> NDArray[np.float32]:
        if name not in self._weights:
            raise ValueError(
                f"the encoder's weights have no {name!r}: they are not those of a plain BERT"
            )
        return np.asarray(self._weights[name], np.float32)

    def constant(self, name: str, values: NDArray[Any]) -> str:
        self.tensors.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def stored(self, *names: str) -> Iterator[str]:
        for name in names:
            yield self.constant(name, self.weight(name))

    def linear(self, prefix: str, states: str) -> str:
        """The product alone: biases are fused into the node that follows."""
        matrix = self.constant(f"{prefix}.weight", self.weight(f"{prefix}.weight").T)
        return self.add("MatMul", [states, matrix], f"{prefix}.product")

    def normal(self, prefix: str, states: str, epsilon: float) -> str:
        inputs = [states, *self.stored(f"{prefix}.LayerNorm.weight", f"{prefix}.LayerNorm.bias")]
        output = f"{prefix}.normal"
        return self.add("LayerNormalization", inputs, output, axis=-1, epsilon=epsilon)

    def add(self, kind: str, inputs: list[str], output: str, domain: str = "", **more: Any) -> str:
        node = helper.make_node(kind, inputs, [output], name=output, domain=domain, **more)
        self.nodes.append(node)
        return output


def _embedded(graph: _Graph, shape: BertShape) -> str:
    # every token of a sentence is of type 0: its embedding is a part of the positions'
    kind = graph.weight("embeddings.token_type_embeddings.weight")[:1]
    places = graph.weight("embeddings.position_embeddings.weight") + kind
    (words,) = graph.stored(WORD_VECTORS)
    table = graph.constant("embeddings.positions", places)
    first, one = (graph.constant(f"whole_{at}", np.array([at], np.int64)) for at in (0, 1))
    graph.add("Gather", [words, "ids"], "words")
    graph.add("Shape", ["ids"], "tokens", start=1)
    graph.add("Slice", [table, first, "tokens", first], "places")
    if graph.padded:
        graph.add("ReduceSum", ["mask", one], "lengths", keepdims=0)
    graph.add("Add", ["words", "places"], "placed")
    return graph.normal("embeddings", "placed", shape.epsilon)


def _layer(graph: _Graph, shape: BertShape, prefix: str, states: str) -> str:
    attention = f"{prefix}attention.self"
    parts = [f"{attention}.{part}" for part in ("query", "key", "value")]
    matrix = np.concatenate([graph.weight(f"{part}.weight").T for part in parts], axis=1)
    bias = np.concatenate([graph.weight(f"{part}.bias") for part in parts])
    graph.add(
        "MatMul", [states, graph.constant(f"{attention}.weight", matrix)], f"{attention}.product"
    )
    graph.nodes.append(
        helper.make_node("Split", [f"{attention}.product"], parts, axis=-1, num_outputs=3)
    )
    inputs = [*parts, graph.constant(f"{attention}.bias", bias)]
    inputs += ["lengths"] if graph.padded else []
    mixed = graph.add("MultiHeadAttention", inputs, attention, FUSED, num_heads=shape.heads)
    between = _joined(graph, shape, f"{prefix}attention.output", mixed, states)
    product = graph.linear(f"{prefix}intermediate.dense", between)
    (inner_bias,) = graph.stored(f"{prefix}intermediate.dense.bias")
    inner = graph.add("BiasGelu", [product, inner_bias], f"{prefix}inner", FUSED)
    return _joined(graph, shape, f"{prefix}output", inner, between)


def _joined(graph: _Graph, shape: BertShape, prefix: str, states: str, skip: str) -> str:
    """LayerNorm(W states + b + skip)."""
    product = graph.linear(f"{prefix}.dense", states)
    (bias,) = graph.stored(f"{prefix}.dense.bias")
    graph.add("Add", [product, bias], f"{prefix}.biased")
    graph.add("Add", [f"{prefix}.biased", skip], f"{prefix}.sum")
    return graph.normal(prefix, f"{prefix}.sum", shape.epsilon)


def _pooled(graph: _Graph, states: str) -> None:
    if graph.padded:
        last = graph.constant("last_axis", np.array([2], np.int64))
        graph.add("Cast", ["mask"], "real", to=TensorProto.FLOAT)
        graph.add("Unsqueeze", ["real", last], "real_column")
        states = graph.add("Mul", [states, "real_column"], "real_states")
    axis = graph.constant("token_axis", np.array([1], np.int64))
    # no division by the number of tokens: the vector is scaled to length one anyway
    graph.add("ReduceSum", [states, axis], "summed", keepdims=0)
    graph.add("LpNormalization", ["summed"], "embeddings", axis=-1, p=2)
