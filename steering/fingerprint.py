"""Which model an artifact was fitted on, told from the weights themselves."""

from __future__ import annotations

import hashlib

import torch
from torch import nn

_SAMPLES = 64


def fingerprint(model: nn.Module) -> str:
    """SHA-256 (hex) over each parameter's name, shape and 64 evenly spaced values as bfloat16.

    The rounding makes a model loaded in float32 or bfloat16 from the same file agree; a fine-tuned
    copy differs, since every matrix has moved. Reads a few kilobytes, whatever the model's size.
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        flat = parameter.detach().reshape(-1)
        at = torch.linspace(0, flat.numel() - 1, min(_SAMPLES, flat.numel()), dtype=torch.float64)
        values = flat[at.round().long().to(flat.device)].to(torch.bfloat16).view(torch.int16)
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
        digest.update(values.cpu().numpy().tobytes())
    return digest.hexdigest()
