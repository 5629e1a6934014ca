"""Screens of text in ONNX Runtime on the GPU: scores beside those on the CPU, throughput."""

from __future__ import annotations

import time

import numpy as np
from numpy.typing import NDArray

from benchmarks.rounds import timed_rounds
from benchmarks.screens.shipped import FITTED, random_texts
from classifiers.embeddings.encoders import PROVIDERS
from classifiers.embeddings.heads import EmbeddingHead, EmbeddingHeads
from classifiers.text.encoder.model import TextEncoder
from guard.artifact import Artifact
from tests.gpu.report import Figure
from tests.gpu.settings import Add, Settings, Skipped, require_packages, required_model

GPU, CPU = PROVIDERS
SCORES = 0.02
"""The most by which a probability may differ; the encoder is of int8."""
FASTER = 1.0


def measure(settings: Settings, add: Add) -> None:
    """The shipped heads on the encoder that they were fitted on."""
    require_packages("onnxruntime", "tokenizers")
    import onnxruntime

    if settings.on_gpu and GPU not in onnxruntime.get_available_providers():
        raise Skipped("onnxruntime has no CUDA provider: install onnxruntime-gpu in its place")
    folder = required_model(settings.encoder, "--encoder")
    threads = 1 if settings.smoke else 8
    encoders = {"CPU": TextEncoder.load(folder, threads=threads, providers=(CPU,))}
    if settings.on_gpu:
        encoders["GPU"] = TextEncoder.load(folder, threads=threads)
        add(Figure("sessions on the GPU", GPU in encoders["GPU"].providers, "sessions", 1))
    else:
        encoders["again"] = TextEncoder.load(folder, threads=threads)
    heads = EmbeddingHeads(
        [
            EmbeddingHead.from_tensors(artifact.tensors, artifact.meta.settings)
            for artifact in map(Artifact.load, sorted(FITTED.glob("*.safetensors")))
        ]
    )
    other = [name for name in encoders if name != "CPU"][0]
    texts = random_texts(8 if settings.smoke else 512)

    def scores(name: str) -> NDArray[np.float32]:
        encoded = encoders[name].encode(texts)
        return encoded.windows.highest(heads.scores(encoded.embeddings))

    began = time.perf_counter()
    expected, found = scores("CPU"), scores(other)
    apart = float(np.abs(expected - found).max())
    add(Figure("largest difference of a score", apart, "probability", SCORES, "at most"))
    add(Figure("first texts, both", time.perf_counter() - began, "seconds"))
    runs = {name: (lambda name=name: scores(name)) for name in encoders}
    result = timed_rounds(runs, 2 if settings.smoke else 5, "CPU")
    for name, part in result.items():
        add(Figure(f"{name}: throughput", len(texts) / part["seconds"], "texts/s"))
    target = settings.speed(FASTER) if settings.on_gpu else None
    add(Figure(f"{other}: throughput, of the CPU", result[other]["ratio"], "ratio", target))
