"""Fingerprints of models, from their weights: they bind an artifact to the model of its fit."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from steering.offloaded import weights_of

_SAMPLES = 64


class UnreadableWeights(ValueError):
    """Weights of a model without values that can be read here."""


def fingerprint(model: nn.Module) -> str:
    """SHA-256 (hex) over each parameter's name, shape and 64 evenly spaced values as bfloat16.

    The rounding makes a model loaded in float32 or bfloat16 from the same file agree; a fine-tuned
    copy differs, since every matrix has changed. Reads a few kilobytes, whatever the model's size;
    offloaded weights are fetched one by one. Raises UnreadableWeights.
    """
    return _digest(weights_of(model))


def checkpoint_fingerprint(folder: Path) -> str:
    """The `fingerprint` of a model from its checkpoint, for engines that load weights differently.

    Raises ValueError for a folder without safetensors weights.
    """
    try:
        tied = json.loads((folder / "config.json").read_text("utf-8")).get("tie_word_embeddings")
        files = sorted(folder.glob("*.safetensors"))
        with ExitStack() as stack:
            open_ = [stack.enter_context(safe_open(path, framework="pt")) for path in files]
            names = {name: file for file in open_ for name in file.keys()}  # noqa: SIM118
            # transformers ties it to the embedding by default, and lists it once
            if tied is not False:
                names.pop("lm_head.weight", None)
            if not names:
                raise ValueError(f"{folder} has no weights in safetensors files")
            return _digest((name, names[name].get_tensor(name)) for name in sorted(names))
    except (OSError, SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(f"{folder} cannot be read: {error}") from error


def _digest(parameters: Iterable[tuple[str, Tensor]]) -> str:
    digest = hashlib.sha256()
    for name, parameter in parameters:
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
        digest.update(_sample(name, parameter).numpy().tobytes())
    return digest.hexdigest()


def _sample(name: str, parameter: Tensor) -> Tensor:
    """Evenly spaced values, as the bits of bfloat16. Raises UnreadableWeights."""
    try:
        whole: Tensor = parameter.detach()
        if hasattr(whole, "full_tensor"):  # sharded over processes
            whole = whole.full_tensor()
        flat = whole.reshape(-1)
        at = torch.linspace(0, flat.numel() - 1, min(_SAMPLES, flat.numel()), dtype=torch.float64)
        values = flat[at.round().long().to(flat.device)].to(torch.bfloat16)
        return values.view(torch.int16).cpu()
    except (NotImplementedError, RuntimeError, TypeError) as error:
        kind = f"{type(parameter).__name__} of {parameter.dtype} on {parameter.device}"
        raise UnreadableWeights(
            f"the weights {name!r} ({kind}) cannot be read: load the model without sharding or "
            "quantisation, or offload it by accelerate's device_map"
        ) from error
