"""Fingerprints of models, from their weights: they bind an artifact to the model of its fit."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from steering.offloaded import weights_of
from steering.quantisation import Quantisation, of_checkpoint, of_loaded, spelled

_SAMPLES = 64
_STATISTICS = frozenset({"running_mean", "running_var"})
"""Buffers of batch normalisation that are trained as weights are."""
_BUFFERS = frozenset({"position_ids", "num_batches_tracked"})
"""Entries of checkpoints that are neither: positions, counts."""
_PREFIXES = frozenset({"model", "language_model", "text_model", "vision_model"})
"""Parts of names of weights that releases of transformers and checkpoints of vision-language models
write or leave out, each in its own order."""


class UnreadableWeights(ValueError):
    """Weights of a model without values that can be read here."""


def fingerprint(model: nn.Module) -> str:
    """SHA-256 (hex) over each parameter's name, shape and 64 evenly spaced values as bfloat16.

    The rounding makes a model loaded in float32 or bfloat16 from the same file agree; a fine-tuned
    copy differs, since every matrix has changed. Reads a few kilobytes, whatever the model's size;
    offloaded weights are fetched one by one. Where transformers runs quantised weights, or has
    fused those of experts, it is that of the checkpoint, which engines unpack in different ways,
    with what was done at load. Of a vision-language model it covers the tower and the projector
    too, and statistics of batch normalisation in them. Raises UnreadableWeights.
    """
    loaded = of_loaded(model)
    if loaded is None:
        fused_from = _fused_from(model)
        if fused_from is not None:
            return checkpoint_fingerprint(fused_from)
        sees = _sees(getattr(model, "config", None))
        return _digest(chain(weights_of(model), _statistics(model) if sees else ()), sees=sees)
    try:
        folder = _folder(model)
        weights = checkpoint_fingerprint(folder)
        return weights if of_checkpoint(folder) else quantised_fingerprint(weights, loaded)
    except (OSError, ValueError) as error:
        raise _unreadable(loaded, error) from error


def quantisation_of(model: nn.Module) -> Quantisation | None:
    """How the weights of a transformers model are quantised; None for plain ones. Raises
    UnreadableWeights."""
    loaded = of_loaded(model)
    try:
        return loaded and (of_checkpoint(_folder(model)) or loaded)
    except (OSError, ValueError) as error:
        raise _unreadable(loaded, error) from error


def checkpoint_fingerprint(folder: Path) -> str:
    """The `fingerprint` of a model from its checkpoint, for engines that load weights differently.

    Of quantised weights the packed values and the scales count, and the settings of the
    quantisation. Raises ValueError for a folder without safetensors weights.
    """
    try:
        quantisation = of_checkpoint(folder)
        config = json.loads((folder / "config.json").read_text("utf-8"))
        files = sorted(folder.glob("*.safetensors"))
        with ExitStack() as stack:
            open_ = [stack.enter_context(safe_open(path, framework="pt")) for path in files]
            names = {name: file for file in open_ for name in file.keys()}  # noqa: SIM118
            # transformers ties it to the embedding by default, and lists it once
            if config.get("tie_word_embeddings") is not False and not _sees(config):
                names.pop("lm_head.weight", None)
            if not names:
                raise ValueError(f"{folder} has no weights in safetensors files")
            weights = _digest(
                ((name, names[name].get_tensor(name)) for name in sorted(names)),
                sees=_sees(config),
            )
    except (OSError, SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(f"{folder} cannot be read: {error}") from error
    return weights if quantisation is None else quantised_fingerprint(weights, quantisation)


def bare_name(name: str) -> str:
    """The name of a weight or layer without the parts that some releases and checkpoints write and
    others leave out."""
    return ".".join(part for part in name.split(".") if part not in _PREFIXES)


def quantised_fingerprint(weights: str, quantisation: Quantisation) -> str:
    """The fingerprint of the weights of fingerprint `weights` under a quantisation."""
    return hashlib.sha256(weights.encode() + spelled(quantisation)).hexdigest()


def _unreadable(quantisation: Quantisation | None, error: Exception) -> UnreadableWeights:
    return UnreadableWeights(
        f"the model is quantised ({quantisation}), and the checkpoint that it was loaded from "
        f"cannot be read ({error}): load it from a folder of safetensors files"
    )


def _folder(model: Any) -> Path:
    """The checkpoint of a transformers model. Raises OSError and ValueError."""
    name = getattr(model.config, "name_or_path", "")
    if not name:
        raise ValueError("its name is not known")
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download

    # transformers has downloaded it by now
    revision = getattr(model.config, "_commit_hash", None)
    return Path(snapshot_download(name, revision=revision, local_files_only=True))


def _fused_from(model: nn.Module) -> Path | None:
    """The checkpoint of a model whose experts transformers has fused, each matrix of all of them
    into one that the checkpoint does not list; None where there is no such matrix or checkpoint."""
    fused = [
        name
        for name, parameter in model.named_parameters()
        if parameter.ndim == 3 and name.split(".")[-2:-1] == ["experts"]
    ]
    if not fused:
        return None
    try:
        folder = _folder(model)
        listed = _names(folder)
    except (AttributeError, OSError, ValueError):
        return None
    return folder if listed and not listed.intersection(fused) else None


def _names(folder: Path) -> set[str]:
    """The weights that a checkpoint lists. Raises ValueError."""
    names: set[str] = set()
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as weights:
                names.update(weights.keys())
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{path} cannot be read: {error}") from error
    return names


def _digest(parameters: Iterable[tuple[str, Tensor]], *, sees: bool) -> str:
    digest = hashlib.sha256()
    for name, content in _of_vision(_contents(parameters)) if sees else _contents(parameters):
        digest.update(name.encode() + content)
    return digest.hexdigest()


def _statistics(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return (
        (name, buffer)
        for name, buffer in model.named_buffers()
        if name.rpartition(".")[2] in _STATISTICS
    )


def _contents(parameters: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, bytes]]:
    """The name of each weight; its shape and its samples."""
    for name, parameter in parameters:
        for part, values in _parts(name, parameter):
            shape = f"{tuple(values.shape)}".encode()
            yield part, shape + _sample(part, values).numpy().tobytes()


def _sees(config: Any) -> bool:
    """Whether a config, of transformers or as it is written, is that of a vision-language model."""
    if isinstance(config, dict):
        return config.get("vision_config") is not None
    return getattr(config, "vision_config", None) is not None


def _of_vision(contents: Iterable[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
    """The weights of a vision-language model by names that loaded models and checkpoints of any
    release agree on, each tied weight once."""
    weights = {
        bare_name(name): content
        for name, content in contents
        if name.rpartition(".")[2] not in _BUFFERS
    }
    if weights.get("lm_head.weight") == weights.get("embed_tokens.weight"):
        weights.pop("lm_head.weight", None)
    return sorted(weights.items())


def _parts(name: str, parameter: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The tensors with values that a parameter consists of: itself, or of a packed one, as torchao
    makes them, its integers, scales and zeros."""
    # a parameter that is sharded over processes has parts of another meaning
    if not hasattr(parameter, "__tensor_flatten__") or hasattr(parameter, "full_tensor"):
        yield name, parameter
        return
    for attribute in sorted(parameter.__tensor_flatten__()[0]):
        yield from _parts(f"{name}.{attribute}", getattr(parameter, attribute))


def _sample(name: str, parameter: Tensor) -> Tensor:
    """Evenly spaced values: floats as the bits of bfloat16, packed ones, integers and floats of
    8 bits as they are. Raises UnreadableWeights."""
    try:
        whole: Tensor = parameter.detach()
        if hasattr(whole, "full_tensor"):  # sharded over processes
            whole = whole.full_tensor()
        flat = whole.reshape(-1)
        if flat.element_size() == 1:
            flat = flat.view(torch.uint8)
        at = torch.linspace(0, flat.numel() - 1, min(_SAMPLES, flat.numel()), dtype=torch.float64)
        values = flat[at.round().long().to(flat.device)]
        if values.is_floating_point():
            values = values.to(torch.bfloat16).view(torch.int16)
        return values.cpu()
    except (NotImplementedError, RuntimeError, TypeError) as error:
        kind = f"{type(parameter).__name__} of {parameter.dtype} on {parameter.device}"
        raise UnreadableWeights(
            f"the weights {name!r} ({kind}) cannot be read: load the model without sharding or "
            "quantisation, or offload it by accelerate's device_map"
        ) from error
