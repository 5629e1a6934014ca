"""Loading a language model, with or without vision, and its tokenizer with transformers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
)
from transformers.utils import logging as transformers_logging
from transformers.utils.hub import cached_file

from steering.engines.transformers.loading.gguf import SUFFIX, load_gguf
from steering.engines.transformers.loading.quantised import quantising
from steering.engines.transformers.loading.trial import require_same_answers
from steering.engines.transformers.vision import takes_images, vision_family
from steering.engines.transformers.vision.base import VisionFamily

_LOAD_ERRORS = (
    *(OSError, ValueError, KeyError, RuntimeError, SafetensorError),
    # what reads quantised weights is a package of its own, for devices that it has
    ImportError,
)


class LanguageModel(NamedTuple):
    """A model in eval mode, its tokenizer, and the family of its images; None for text alone."""

    model: Any
    tokenizer: Any
    vision: VisionFamily | None


def load_language_model(
    source: str,
    *,
    dtype: str = "float32",
    device: str = "auto",
    device_map: str | None = None,
    quantization: str | None = None,
) -> LanguageModel:
    """The model and the tokenizer from a directory, a hub name or a GGUF file; of a vision-language
    model, what becomes of its images too.

    `device` "auto" takes a GPU where there is one; `device_map` "auto" lets accelerate place the
    model, which must have room on one device. `quantization` is one of `quantised.METHODS`.
    Weights are read from safetensors and GGUF files alone: other formats are pickles. An
    architecture that no test covers is tried.

    Raises ValueError with the reason where loading fails.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        if source.endswith(SUFFIX):
            if quantization:
                raise ValueError("quantization is for safetensors files: a GGUF file is unpacked")
            model, tokenizer = load_gguf(Path(source), dtype)
            model, vision = model.to(device), None
        else:
            tokenizer, vision = load_tokenizer(source)
            options: dict[str, Any] = {}
            if device_map or quantization:  # accelerate's, which vLLM's environment has not
                options["device_map"] = device_map or {"": device}
            if quantization:
                options["quantization_config"] = quantising(quantization, dtype)
            model = _checkpoint(source, dtype, vision, options)
            if not options:
                model = model.to(device)
            if quantization:
                _run_once(model)
        model = model.eval()
        require_same_answers(model, vision)
    except _LOAD_ERRORS as error:
        raise ValueError(f"{source} cannot be loaded: {_reason(error, source)}") from error
    return LanguageModel(model, tokenizer, vision)


@torch.inference_mode()
def _run_once(model: Any) -> None:
    """Kernels of quantised weights refuse some widths, in the first forward. Raises
    RuntimeError."""
    weight = model.get_input_embeddings().weight
    model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=weight.device))


def _checkpoint(
    source: str, dtype: str, vision: VisionFamily | None, options: Mapping[str, Any]
) -> Any:
    kind: Any = AutoModelForImageTextToText if vision else AutoModelForCausalLM
    model, loading_info = kind.from_pretrained(
        source, dtype=dtype, use_safetensors=True, output_loading_info=True, **options
    )
    if missing := sorted(loading_info["missing_keys"]):
        # transformers fills missing weights with random numbers
        raise ValueError(f"{len(missing)} weights are missing, {missing[0]} the first")
    places = {str(place) for place in getattr(model, "hf_device_map", {}).values()}
    if len(places) > 1:
        raise ValueError(
            f"it would be spread over {', '.join(sorted(places))}, and a batch runs on one device: "
            "take a smaller dtype or a quantization, or a larger device"
        )
    return model


def load_tokenizer(source: str) -> tuple[Any, VisionFamily | None]:
    """The tokenizer of a model, and the family of its images; None for text alone.

    For engines that load weights themselves. Raises OSError, ValueError and what else loading
    raises.
    """
    tokenizer: Any = AutoTokenizer.from_pretrained(source)
    config = AutoConfig.from_pretrained(source)
    if not takes_images(config):
        return tokenizer, None
    if tokenizer.chat_template is None:
        tokenizer.chat_template = _processor_template(source)
    # the same pixels whether torchvision is installed or not
    processors: Any = AutoImageProcessor
    processor = processors.from_pretrained(source, backend="pil")
    return tokenizer, vision_family(config, processor, tokenizer)


def _processor_template(source: str) -> str | None:
    """The chat template in a file that only processors of vision-language models have."""
    path = cached_file(source, "chat_template.json", _raise_exceptions_for_missing_entries=False)
    if path is None:
        return None
    with open(path, encoding="utf-8") as file:
        template = json.load(file)["chat_template"]
    return str(template)


def _reason(error: BaseException, source: str) -> str:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    if isinstance(error, OSError) and not Path(source).exists():
        reason = f"{reason.rstrip('.')}: download it first, or name a directory or a GGUF file"
    return reason
