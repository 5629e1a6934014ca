"""Sparse autoencoders of a model's states, in a file that several fits share.

`f = z · 1[z > θ]` with `z = E h + b`, and `h ≈ Σ_i f_i d_i + c` with `d_i` of unit length: in the
units of the states, whatever training has scaled them by. A file has an autoencoder for each of its
places, which are decoder layers of a language model or streams of text encoders, and is bound to
the model's fingerprint.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from guard.artifact import FittedModel
from guard.errors import ArtifactError, DataError, FingerprintError
from guard.fitting.checkpoints import save_whole
from steering.methods.sparse_features import SparseFeatures, activations

MAX_BYTES = 2**32
_KEY = "sparse_autoencoder"
_PARTS = ("reads", "offsets", "cuts", "writes", "centre")
_AGAIN = "give another file, or remove it to have one trained"


@dataclass(frozen=True, eq=False)
class SparseAutoencoder:
    """`features` of one place, without a leading dimension, and the `centre [width]`, c."""

    features: SparseFeatures
    centre: Tensor

    @property
    def count(self) -> int:
        """The number of features."""
        return len(self.features.reads)

    def encode(self, states: Tensor) -> Tensor:
        """Activations `[n, features]` of `states [n, width]`."""
        reads, offsets, cuts, _ = self.features.parts
        return activations(reads, offsets, cuts, states)

    def decode(self, encoded: Tensor) -> Tensor:
        """States `[n, width]` of activations `[n, features]`."""
        return encoded @ self.features.writes + self.centre

    def chosen(self, index: Tensor) -> SparseFeatures:
        """These features, by index `[count]`."""
        return SparseFeatures(*(part[index].contiguous() for part in self.features.parts))


class About(BaseModel):
    """The metadata of a file: `figures` by place are of states that were not trained on."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    schema_version: Literal[1] = 1
    model: FittedModel
    places: tuple[str, ...] = Field(min_length=1)
    settings: dict[str, float] = {}
    figures: dict[str, dict[str, float]] = {}


@dataclass(frozen=True, eq=False)
class Autoencoders:
    """What a file holds: an autoencoder by place."""

    about: About
    by_place: Mapping[str, SparseAutoencoder]

    def save(self, path: Path) -> None:
        """Write the file, all of it or nothing."""
        tensors = {
            f"{name}.{place}": tensor
            for place, autoencoder in self.by_place.items()
            for name, tensor in zip(
                _PARTS, (*autoencoder.features.parts, autoencoder.centre), strict=True
            )
        }
        save_whole(path, tensors, {_KEY: self.about.model_dump_json()})

    @classmethod
    def load(cls, path: Path) -> Self:
        """Raises ArtifactError for a file that is none."""
        try:
            if path.stat().st_size > MAX_BYTES:
                raise ArtifactError(f"{path}: is larger than {MAX_BYTES // 2**20} MiB: {_AGAIN}")
            with safe_open(path, "pt") as file:
                about = About.model_validate_json((file.metadata() or {}).get(_KEY, "null"))
                by_place = {place: _read(file.get_tensor, place) for place in about.places}
        except (OSError, SafetensorError, ValidationError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise ArtifactError(f"{path}: is no sparse autoencoder ({reason}): {_AGAIN}") from error
        return cls(about, by_place)

    def require_model(self, model: FittedModel, path: Path) -> None:
        """Raise FingerprintError unless it is of this model's states."""
        if self.about.model.fingerprint != model.fingerprint:
            raise FingerprintError(
                f"{path}: is of the model {self.about.model.name!r}, not of {model.name!r}: "
                f"{_AGAIN}"
            )

    def require_places(self, places: Iterable[str], path: Path) -> None:
        """Raise DataError where it has no autoencoder of one of these places."""
        if missing := [place for place in places if place not in self.by_place]:
            raise DataError(
                f"{path}: has autoencoders of {', '.join(self.by_place)} and none of "
                f"{', '.join(missing)}: give another file, or places that it has"
            )


def _read(tensor: Callable[[str], Tensor], place: str) -> SparseAutoencoder:
    parts = [tensor(f"{name}.{place}").clone().float() for name in _PARTS]
    if not all(bool(part.isfinite().all()) for part in parts):
        raise ValueError(f"the autoencoder of {place} has numbers that are not finite")
    *features, centre = parts
    autoencoder = SparseAutoencoder(SparseFeatures(*features), centre)
    if autoencoder.features.reads.ndim != 2 or centre.shape != autoencoder.features.reads.shape[1:]:
        raise ValueError(f"the tensors of {place} are of other shapes")
    return autoencoder


def explained(autoencoder: SparseAutoencoder, states: Tensor) -> dict[str, float]:
    """Figures on `states [n, width]`: the share of their variance that the features explain, how
    many are active on a state, and the share of features that are active on none."""
    encoded = autoencoder.encode(states)
    left = (states - autoencoder.decode(encoded)).square().sum()
    whole = (states - states.mean(0)).square().sum()
    active = encoded > 0
    return {
        "explained": 1.0 - float(left / whole),
        "active": float(active.sum(1).float().mean()),
        "silent": float((~active.any(0)).float().mean()),
    }


def mean_activations(autoencoder: SparseAutoencoder, states: Tensor, rows: int = 4096) -> Tensor:
    """The mean of each feature `[features]` over `states [n, width]`, in parts of so many rows."""
    total = torch.zeros(autoencoder.count, dtype=torch.float64)
    for start in range(0, len(states), rows):
        part = states[start : start + rows]
        total += autoencoder.encode(part.float()).double().sum(0)
    return total / max(len(states), 1)
