"""A model's profile: what fits of guards on it share, computed once and kept in a file.

The file is bound to the model's fingerprint and to the prompts of the retain bank.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from guard.artifact import FittedModel
from guard.cache import cache_dir
from guard.data.bank.bank import digest
from guard.errors import ArtifactError
from guard.fitting.checkpoints import save_whole
from guard.fitting.steering.gates import RetainStatistics, TokenStates

MAX_BYTES = 2**31
_KEY = "profile"


class About(BaseModel):
    """The metadata of a profile. `figures` are those that its settings were chosen by."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    schema_version: Literal[1] = 1
    model: FittedModel
    bank: str
    sense_layers: tuple[int, ...] = Field(min_length=1)
    act_layers: tuple[int, ...] = Field(min_length=1)
    strength: float
    weight: float
    figures: dict[str, float] = {}


@dataclass(frozen=True)
class Profile:
    """Sensing layers with the statistics of the bank's train prompts there, and directions `[act
    layers, width]` with their strength.

    States are of the bank's prompts after the sensing layers: `sample` of some train prompts,
    `held_out` of the validation prompts in the bank's order, `answered` of the first of these with
    the bare model's answers. `centres [topics, width]` are the mean states of all topics after the
    last of these layers.
    """

    about: About
    statistics: RetainStatistics
    directions: Tensor
    sample: TokenStates
    held_out: TokenStates
    answered: TokenStates
    centres: Tensor

    _PARTS: ClassVar[tuple[str, ...]] = ("sample", "held_out", "answered")

    def save(self, path: Path) -> None:
        """Write the file, all of it or nothing."""
        tensors = {
            "gram": self.statistics.gram,
            "scale": self.statistics.scale,
            "directions": self.directions,
            "centres": self.centres,
        }
        for name in self._PARTS:
            tensors |= as_tensors(name, getattr(self, name))
        save_whole(path, tensors, {_KEY: self.about.model_dump_json()})

    @classmethod
    def load(cls, path: Path) -> Self:
        """Raises ArtifactError for a file that is none, or of another retain bank."""
        again = "compute it again with `guard profile`"
        try:
            if path.stat().st_size > MAX_BYTES:
                raise ArtifactError(f"{path}: is larger than {MAX_BYTES // 2**20} MiB: no profile")
            with safe_open(path, "pt") as file:
                about = About.model_validate_json((file.metadata() or {}).get(_KEY, "null"))
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if about.bank != digest():
                raise ArtifactError(f"{path}: is of another retain bank: {again}")
            return cls._of(about, tensors)
        except (OSError, SafetensorError, ValidationError, KeyError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise ArtifactError(f"{path}: is no profile of a model ({reason}): {again}") from error

    @classmethod
    def _of(cls, about: About, tensors: dict[str, Tensor]) -> Self:
        layers = tuple(range(len(about.sense_layers)))
        size = len(layers) * about.model.width
        if tensors["gram"].shape != (size, size) or len(tensors["scale"]) != len(layers):
            raise KeyError("its statistics are of other layers")
        statistics = RetainStatistics(layers, tensors["scale"], tensors["gram"], about.weight)
        parts: dict[str, Any] = {}
        for name in cls._PARTS:
            parts[name] = from_tensors(name, tensors)
        return cls(about, statistics, tensors["directions"], **parts, centres=tensors["centres"])


def as_tensors(name: str, states: TokenStates) -> dict[str, Tensor]:
    """States as tensors of a file, by names that begin with `name`."""
    return {
        f"{name}.states": states.states,
        f"{name}.lengths": torch.bincount(states.sequence, minlength=states.count),
        f"{name}.behind_prefix": states.behind_prefix,
    }


def from_tensors(name: str, tensors: Mapping[str, Tensor]) -> TokenStates:
    """The states that `as_tensors` has made tensors of. Raises KeyError."""
    lengths = tensors[f"{name}.lengths"]
    return TokenStates(
        states=tensors[f"{name}.states"],
        sequence=torch.repeat_interleave(torch.arange(len(lengths)), lengths),
        behind_prefix=tensors[f"{name}.behind_prefix"],
        count=len(lengths),
    )


def profile_path(model: FittedModel) -> Path:
    """The place of a model's profile in the cache."""
    return cache_dir() / "profiles" / f"{model.fingerprint[:16]}.safetensors"


def own_profile(model: FittedModel) -> Profile | None:
    """The profile of a model in the cache, None where there is none. Raises ArtifactError for a
    file that is none, and for one of another model."""
    path = profile_path(model)
    if not path.is_file():
        return None
    profile = Profile.load(path)
    if profile.about.model.fingerprint != model.fingerprint:
        raise ArtifactError(f"{path}: is of the model {profile.about.model.name}")
    return profile
