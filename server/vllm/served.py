"""The facts about a vLLM engine's model that guards need, from the engine's configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from guard.errors import ModelError
from guard.plans.language import ServedModel
from steering.fingerprint import checkpoint_fingerprint


def served_by(config: Any, device: str = "cpu") -> ServedModel:
    """The model of a `VllmConfig`. Raises ModelError where its checkpoint cannot be read."""
    model = config.model_config
    try:
        fingerprint = checkpoint_fingerprint(_checkpoint(model))
    except ValueError as error:
        raise ModelError(f"{model.model} cannot be guarded: {error}") from error
    return ServedModel(
        fingerprint=fingerprint,
        depth=model.get_total_num_hidden_layers(),
        width=model.get_hidden_size(),
        device=device,
    )


def served_name(config: Any) -> str:
    """The public name of the model of a `VllmConfig`."""
    model = config.model_config
    name = model.served_model_name
    return str(name[0] if isinstance(name, list) else name or model.model)


def _checkpoint(model: Any) -> Path:
    folder = Path(model.model)
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download

    # vLLM has downloaded it by now
    return Path(snapshot_download(model.model, revision=model.revision, local_files_only=True))
