"""Loading a diffusers pipeline part by part, so that a missing weight is an error."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline, ModelMixin
from diffusers.utils import logging as diffusers_logging
from safetensors import SafetensorError
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

_FULL = "vae"
"""Always loaded in float32: some autoencoders overflow in float16."""


def load_pipeline(source: str, *, dtype: str = "float32", device: str = "auto") -> Any:
    """The pipeline of a directory or hub name, in eval mode.

    `device` "auto" takes a GPU where there is one; `dtype` "auto" is bfloat16 there and float32 on
    a CPU. Only safetensors weights are read: other formats are pickles. No code that comes with a
    model is run. Raises ValueError with the reason if the pipeline cannot be loaded.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if dtype == "auto":
        dtype = "float32" if device == "cpu" else "bfloat16"
    _silence_libraries()
    try:
        index = DiffusionPipeline.load_config(source)
        parts: dict[str, Any] = dict(_networks(source, index, getattr(torch, dtype)))
        # a pipeline that was saved without a part is loaded without it
        parts |= {name: None for name, entry in index.items() if _is_part(entry) and not any(entry)}
        pipeline: Any = DiffusionPipeline.from_pretrained(  # type: ignore[no-untyped-call]
            source, use_safetensors=True, **parts
        )
    except (
        *(OSError, ValueError, KeyError, TypeError, AttributeError, ImportError, RuntimeError),
        SafetensorError,
    ) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{source} cannot be loaded: {reason}") from error
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


def _networks(source: str, index: dict[str, Any], dtype: torch.dtype) -> Iterator[tuple[str, Any]]:
    """The parts with weights, by name."""
    for name, entry in index.items():
        kind = _kind(entry)
        if kind is None:
            continue
        precision = torch.float32 if name == _FULL else dtype
        dtype_argument = "torch_dtype" if issubclass(kind, ModelMixin) else "dtype"
        network, report = kind.from_pretrained(
            source,
            subfolder=name,
            use_safetensors=True,
            output_loading_info=True,
            **{dtype_argument: precision},
        )
        if missing := sorted(report["missing_keys"]):
            # transformers and diffusers would fill them with random numbers
            raise ValueError(
                f"{len(missing)} weights of {name} are missing, {missing[0]} the first"
            )
        yield name, network.eval()


def _kind(entry: Any) -> Any:
    """The class of a part with weights, None for any other entry of a pipeline's index."""
    if not _is_part(entry) or not all(entry):
        return None
    library, class_name = entry
    if hasattr(diffusers.pipelines, library):
        library = f"diffusers.pipelines.{library}"
    kind = getattr(import_module(library), class_name)
    networks = (ModelMixin, PreTrainedModel)
    return kind if isinstance(kind, type) and issubclass(kind, networks) else None


def _is_part(entry: Any) -> bool:
    """Whether an entry is a part's library and class, both None where there is no such part."""
    return isinstance(entry, list | tuple) and len(entry) == 2


def _silence_libraries() -> None:
    # their progress bars disturb ours, and their warnings repeat the text of prompts
    for logging in (transformers_logging, diffusers_logging):
        logging.disable_progress_bar()
        logging.set_verbosity_error()
