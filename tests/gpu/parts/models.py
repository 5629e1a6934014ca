"""The language model of a run, and a guard that fits it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from transformers import AutoConfig

from benchmarks.tiny_language import SHIPPED, SMOLLM2, write_tiny
from guard.artifact import Artifact
from steering.fingerprint import checkpoint_fingerprint
from tests.gpu.settings import Settings, required_model

ALWAYS = -1e9
"""A threshold that any score reaches."""


def language_model(settings: Settings) -> tuple[str, Artifact]:
    """The folder of a model, and the guard that throughput is measured with.

    Without a model it has random weights and the shape of SmolLM2, a smoke run a thinner one. The
    guard is the shipped one where that was fitted on the model; else it has random tensors and
    fires on everything, which takes as long. Raises Skipped where a model is not there.
    """
    if settings.language is not None:
        folder = required_model(settings.language, "--language")
        shipped, fitted_on = Artifact.load(SHIPPED), checkpoint_fingerprint(Path(folder))
        if shipped.meta.model is not None and shipped.meta.model.fingerprint == fitted_on:
            return folder, shipped
        return folder, _for_shape(shipped, folder, fitted_on)
    made = settings.folder("language")
    artifact = made / "guard.safetensors"
    if settings.smoke:
        write_tiny(made / "model", artifact)
    else:
        write_tiny(made / "model", artifact, **SMOLLM2)
    return str(made / "model"), _firing(Artifact.load(artifact))


def _for_shape(shipped: Artifact, folder: str, fitted_on: str) -> Artifact:
    """Random gates and directions at the layers that lie where the shipped guard's do."""
    config = AutoConfig.from_pretrained(folder).get_text_config()
    depth, width, fitted = config.num_hidden_layers, config.hidden_size, shipped.meta.model
    assert fitted is not None
    rng = np.random.default_rng(0)
    tensors = {
        name: rng.standard_normal((len(values), width), np.float32) * values.std()
        for name, values in shipped.tensors.items()
    }
    layers = {
        name: [int(at * depth / fitted.layers) for at in shipped.meta.settings[name]]
        for name in ("sense_layers", "act_layers")
    }
    model = fitted.model_copy(
        update={"name": "given", "fingerprint": fitted_on, "layers": depth, "width": width}
    )
    settings = shipped.meta.settings | layers
    update = {"model": model, "settings": settings, "tensors_sha256": ""}
    return _firing(Artifact(shipped.meta.model_copy(update=update), tensors))


def _firing(artifact: Artifact) -> Artifact:
    settings = artifact.meta.settings | {"threshold": ALWAYS, "recheck": ALWAYS}
    update = {"settings": settings, "tensors_sha256": ""}
    return Artifact(artifact.meta.model_copy(update=update), artifact.tensors)
