"""Loading a causal language model and its tokenizer with transformers."""

from __future__ import annotations

from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging


def load_language_model(
    source: str, *, dtype: str = "float32", device: str = "auto"
) -> tuple[Any, Any]:
    """The model (in eval mode) and the tokenizer from a directory or a hub name.

    `device` "auto" takes a GPU where there is one. Only safetensors weights are read: other
    formats are pickles. Raises ValueError with the reason where loading fails.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source, dtype=dtype, use_safetensors=True, output_loading_info=True
        )
    # what reads quantised weights is a package of its own (ImportError), for devices that it has
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{source} cannot be loaded: {reason}") from error
    model, loading_info = loaded
    if missing := sorted(loading_info["missing_keys"]):
        # transformers fills missing weights with random numbers
        raise ValueError(
            f"{source} cannot be loaded: {len(missing)} weights are missing, {missing[0]} the first"
        )
    return model.to(device).eval(), tokenizer
