"""The facts about a vLLM engine's model that guards need, from the engine's configuration."""

from __future__ import annotations

from typing import Any

from guard.errors import ModelError
from guard.plans.language import ServedModel
from steering.engines.vllm.weights import served_fingerprint, served_quantisation


def served_by(config: Any, device: str = "cpu") -> ServedModel:
    """The model of a `VllmConfig`. Raises ModelError where its checkpoint cannot be read."""
    model = config.model_config
    try:
        fingerprint, quantisation = served_fingerprint(model), served_quantisation(model)
    except (OSError, ValueError) as error:
        raise ModelError(f"{model.model} cannot be guarded: {error}") from error
    return ServedModel(
        fingerprint=fingerprint,
        depth=model.get_total_num_hidden_layers(),
        width=model.get_hidden_size(),
        device=device,
        quantisation=str(quantisation or ""),
    )


def served_name(config: Any) -> str:
    """The public name of the model of a `VllmConfig`."""
    model = config.model_config
    name = model.served_model_name
    return str(name[0] if isinstance(name, list) else name or model.model)
