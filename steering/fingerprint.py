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

_SAMPLES = 64


def fingerprint(model: nn.Module) -> str:
    """SHA-256 (hex) over each parameter's name, shape and 64 evenly spaced values as bfloat16.

    The rounding makes a model loaded in float32 or bfloat16 from the same file agree; a fine-tuned
    copy differs, since every matrix has changed. Reads a few kilobytes, whatever the model's size.
    """
    return _digest(sorted(model.named_parameters()))


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
        flat = parameter.detach().reshape(-1)
        at = torch.linspace(0, flat.numel() - 1, min(_SAMPLES, flat.numel()), dtype=torch.float64)
        values = flat[at.round().long().to(flat.device)].to(torch.bfloat16).view(torch.int16)
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
        digest.update(values.cpu().numpy().tobytes())
    return digest.hexdigest()
