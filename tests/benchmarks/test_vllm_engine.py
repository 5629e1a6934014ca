"""Figures of a vLLM engine that need no vLLM."""

from __future__ import annotations

from pathlib import Path

import torch

from benchmarks.vllm_engine import guard_bytes
from guard.artifact import Artifact
from steering.hidden.bank import HiddenBank
from steering.methods import METHODS
from steering.methods.fitted import FittedGuard
from steering.methods.steer import loaded


def test_the_memory_of_a_guard_is_that_of_its_tensors() -> None:
    artifact = Artifact.load(Path("examples/harry-potter/steer.safetensors"))
    fitted = FittedGuard("g", artifact.tensors, artifact.meta.settings)
    bank = HiddenBank([METHODS["steer"].stacked([fitted])])
    tensors = (loaded(fitted).gates, loaded(fitted).directions)
    expected = sum(tensor.numel() * torch.float32.itemsize for tensor in tensors)
    # beside them, a few numbers for each guard
    assert expected <= guard_bytes(bank) < expected + 100
