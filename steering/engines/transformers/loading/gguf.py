"""Language models in GGUF files, llama.cpp's format: transformers reads and unpacks them.

transformers leaves out, without an error, what it has no place for in a configuration. Here that
is read as well (`gguf_config`), or the file is refused by the name of what cannot be read: weights,
parts, architectures. The tokenizer and its chat template are those of the file alone.
"""

from __future__ import annotations

import contextlib
import io
import logging
import struct
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS
from transformers.integrations.gguf.reader import read_gguf_metadata
from transformers.modeling_gguf_pytorch_utils import (
    GGUF_SUPPORTED_ARCHITECTURES,
    TENSOR_PROCESSORS,
    TensorProcessor,
    get_gguf_hf_weights_map,
)

from steering.engines.transformers.layers import decoder_layers
from steering.engines.transformers.loading.gguf_config import FREQUENCIES, completed
from steering.engines.transformers.tokens import end_of_turn

logger = logging.getLogger(__name__)

SUFFIX = ".gguf"
_NO_DECODER = frozenset({"t5", "t5encoder", "umt5", "mamba", "lfm2", "bloom"})
"""Architectures of GGUF files that transformers reads, whose layers take no guards."""
_END_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")
_BY_DEFAULT = frozenset({"default", "gpt-2", "smollm", "starcoder", "refact", "mpt", "olmo"})
"""Ways to split texts that are GPT-2's, or whose vocabulary leaves no other one."""


class Unpacked(NamedTuple):
    """A model with plain weights, and its tokenizer."""

    model: Any
    tokenizer: Any


@dataclass(frozen=True, slots=True)
class GgufFile:
    """What a GGUF file says of itself; an array of texts in `metadata` is its length."""

    path: Path
    metadata: dict[str, Any]
    tensors: tuple[str, ...]

    @classmethod
    def open(cls, path: Path) -> GgufFile:
        """Read the header. Raises OSError, and ValueError for a file that is no GGUF file, is not
        whole, or holds no language model that can be read."""
        try:
            metadata, tensors = read_gguf_metadata(str(path))
        except (struct.error, IndexError, UnicodeDecodeError, OverflowError) as error:
            raise ValueError("the GGUF file is damaged or not whole: get it again") from error
        file = cls(path, metadata, tuple(tensors))
        file._require_readable()
        return file

    @property
    def architecture(self) -> str:
        """llama.cpp's name of the architecture."""
        return str(self.metadata["general.architecture"])

    def _require_readable(self) -> None:
        parts = self.metadata.get("split.count", 1)
        if parts > 1:
            raise ValueError(
                f"the GGUF file is one of {parts} parts, which are not read: merge them with "
                "`llama-gguf-split --merge FIRST-PART MERGED.gguf` of llama.cpp"
            )
        if self.architecture in {"clip", "mmproj"} or not self.metadata.get(
            "tokenizer.ggml.tokens"
        ):
            raise ValueError(
                f"the GGUF file holds no language model ({self.architecture!r}, without a "
                "vocabulary): name the file of the language model"
            )
        known = sorted(set(GGUF_SUPPORTED_ARCHITECTURES) - _NO_DECODER - {"general", "tokenizer"})
        if self.architecture.replace("-", "_") not in known and self.architecture not in {
            "qwen2moe",
            "qwen3moe",
        }:
            raise ValueError(
                f"GGUF files of the architecture {self.architecture!r} are not read; those of "
                f"{', '.join(known)} are: take the model's safetensors files"
            )


def load_gguf(path: Path, dtype: str = "float32") -> Unpacked:
    """The model of a GGUF file with weights unpacked to `dtype`, and its tokenizer.

    The unpacked weights have the fingerprint of a checkpoint that was made from the same file.
    `generation_config.eos_token_id` has all tokens that end an answer. Raises OSError, and
    ValueError for a file that cannot be read, or not as a whole.
    """
    file = GgufFile.open(path)
    with _alone(path) as (folder, name):
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, gguf_file=name)
        read: Any = AutoConfig.from_pretrained(folder, gguf_file=name)
        config = completed(read, file.metadata, file.tensors, path)
        _require_all_read(file, config)
        with contextlib.redirect_stderr(io.StringIO()):  # its bar knows no other switch
            causal: Any = AutoModelForCausalLM
            model, loading_info = causal.from_pretrained(
                folder,
                gguf_file=name,
                config=config,
                dtype=torch.float32 if dtype == "auto" else getattr(torch, dtype),
                output_loading_info=True,
            )
    if missing := sorted(loading_info["missing_keys"]):
        raise ValueError(f"{len(missing)} weights are missing, {missing[0]} the first")
    _forget_quantisation(model, path)
    model.generation_config.eos_token_id = _ends(file, tokenizer)
    _warn_of_splits(file)
    return Unpacked(model, tokenizer)


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[tuple[str, str]]:
    """A folder with the file alone, and its name there: transformers takes templates and settings
    from files beside it."""
    with tempfile.TemporaryDirectory() as folder:
        link = Path(folder) / "model.gguf"
        link.symlink_to(path.absolute())
        yield folder, link.name


def _require_all_read(file: GgufFile, config: Any) -> None:
    """Refuse a file with weights that the model has no place for, which transformers drops."""
    causal: Any = AutoModelForCausalLM
    with torch.device("meta"):
        model = causal.from_config(config)
    decoder_layers(model)
    if any("_exps" in name for name in file.tensors):
        return  # matrices of experts are joined under names that this mapping does not have
    kind: Any = TENSOR_PROCESSORS.get(file.architecture, TensorProcessor)
    processor = kind(config=config.to_dict())
    places = get_gguf_hf_weights_map(model, processor)
    dropped = sorted({*file.tensors} - {*places} - FREQUENCIES)
    if dropped:
        raise ValueError(
            f"{len(dropped)} weights of the GGUF file have no place in a {config.model_type!r} "
            f"model of transformers, {dropped[0]} the first: take the model's safetensors files"
        )


def _forget_quantisation(model: Any, path: Path) -> None:
    """The weights are plain ones now, which transformers does not say of itself."""
    if hasattr(model, "hf_quantizer"):
        del model.hf_quantizer
    model.is_quantized = False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.config.name_or_path = str(path)


def _ends(file: GgufFile, tokenizer: Any) -> list[int]:
    """Tokens that end an answer: those that the file lists, and what the template writes behind
    one, which files of instruct models often leave out."""
    listed = [file.metadata.get(f"tokenizer.ggml.{key}") for key in _END_KEYS]
    more = file.metadata.get("tokenizer.ggml.eos_token_ids")
    listed += more if isinstance(more, list) else []
    return sorted({int(end) for end in (*listed, end_of_turn(tokenizer)) if end is not None})


def _warn_of_splits(file: GgufFile) -> None:
    split = file.metadata.get("tokenizer.ggml.pre", "default")
    known = {*GGUF_PRE_TOKENIZER_SPLITS, *_BY_DEFAULT}
    if file.metadata.get("tokenizer.ggml.model") == "gpt2" and split not in known:
        logger.warning(
            "%s: texts are split as GPT-2 splits them, since transformers does not know the way "
            "%r: compare its token ids with those of the model's own tokenizer",
            file.path.name,
            split,
        )
