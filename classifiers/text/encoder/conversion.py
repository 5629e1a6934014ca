"""Conversion of a sentence encoder's weights to the served folder: graph, tokenizer, card."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Literal

from safetensors.numpy import load_file

from classifiers.embeddings.encoders import sha256
from classifiers.text.encoder.bert_onnx import BertShape, to_onnx
from classifiers.text.encoder.card import CARD, GRAPH, TOKENIZER, EncoderCard

Precision = Literal["int8", "float32"]


def convert(
    source: Path,
    target: Path,
    *,
    name: str,
    layers: int | None = None,
    precision: Precision,
    prefix: str = "",
) -> EncoderCard:
    """Write the encoder of `source` (model.safetensors, config.json, tokenizer.json) to `target`.

    With `layers`, only the first layers are kept, and the states after the last of them are pooled.
    `prefix` is put before every text, as the encoder was trained.
    Raises ValueError for weights that are no plain BERT or have fewer layers.
    """
    config = json.loads((source / CARD).read_text("utf-8"))
    shape = BertShape.from_config(config)
    kept = shape.layers if layers is None else layers
    if not 1 <= kept <= shape.layers:
        raise ValueError(f"the encoder has {shape.layers} layers: {kept} cannot be kept")
    weights = load_file(source / "model.safetensors")
    model = to_onnx(weights, replace(shape, layers=kept), padded=precision == "float32")
    if precision == "int8":
        from classifiers.text.encoder.quantization import quantised

        model = quantised(model)
    (target / GRAPH).write_bytes(model.SerializeToString(deterministic=True))
    shutil.copyfile(source / TOKENIZER, target / TOKENIZER)
    card = EncoderCard(
        name=name,
        source=sha256(source / "model.safetensors"),
        tokenizer=sha256(target / TOKENIZER),
        graph=sha256(target / GRAPH),
        layers=kept,
        width=int(config["hidden_size"]),
        precision=precision,
        prefix=prefix,
    )
    card.write(target)
    return card
