"""What gates of names share, computed once for a model: the names of people who are innocent.

Kept in the cache beside the model's profile.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from guard.data.bank.bank import digest
from guard.data.bank.names import TRAIN, VALIDATION, names_digest, people
from guard.fitting.checkpoints import Checkpoints, save_whole
from guard.fitting.erasure.profile import (
    Profile,
    as_tensors,
    from_tensors,
    profile_path,
)
from guard.fitting.erasure.profiling import checkpoints, read_prompts
from guard.fitting.steering.gates import RIDGE, TokenStates
from guard.fitting.suppression.reading import Asked, name_states
from guard.models.chat import ChatModel
from guard.reporting.progress import Stages

FOR_FIT, HELD_OUT = 400, 300
"""Names of strangers, of the train and the validation split."""
DIMENSIONS = 64
"""Of the projection in which candidates are searched."""
RECIPE = 1
"""Of what `Strangers.of` does: count it up where a change of it makes its parts others, which a
computation that was killed has left behind."""
_KEY = "strangers"


@dataclass(frozen=True)
class Strangers:
    """Of prompts about strangers, at the profile's sensing layers, all scaled and joined, `joined`
    = layers * width.

    `system [joined, joined]`, float64, is what a gate must not answer to: the profile's statistics,
    those of prompts about strangers, and the ridge term. `projection [joined, DIMENSIONS]` takes
    states to the directions in which names differ most, in units in which innocent states are
    white. `held_out` are prompts of the validation split.
    """

    system: Tensor
    projection: Tensor
    held_out: TokenStates

    @classmethod
    def of(
        cls, chat: ChatModel, profile: Profile, progress: Stages, kept: Checkpoints | None = None
    ) -> Self:
        """Computed from the model, but for what `kept` has."""
        kept = kept or Checkpoints(None)
        layers, statistics = profile.about.sense_layers, profile.statistics
        names = people("train", FOR_FIT)
        every = [Asked(wording, name) for name in names for wording in TRAIN[:2]]
        states = read_prompts(
            chat, [each.text for each in every], layers, "reading strangers", progress, kept
        )
        system = _ridged(statistics.gram + statistics.gram_of(states))
        ends = kept.tensors(
            "names",
            lambda: {
                "ends": name_states(chat, every, layers, "reading strangers' names", progress)
            },
        )["ends"]
        joined = (ends * statistics.scale[:, None]).flatten(1).double()
        # the largest directions of names where the states of all other prompts are white
        whitening = torch.linalg.cholesky(_ridged(statistics.gram))
        white = torch.linalg.solve_triangular(whitening, (joined - joined.mean(0)).T, upper=False)
        size = min(DIMENSIONS, *white.shape)
        largest = torch.linalg.svd(white, full_matrices=False).U[:, :size]
        projection = torch.linalg.solve_triangular(whitening.T, largest, upper=True)
        asked = [
            Asked(VALIDATION[i % len(VALIDATION)], name).text
            for i, name in enumerate(people("validation", HELD_OUT))
        ]
        held_out = read_prompts(chat, asked, layers, "reading other strangers", progress, kept)
        return cls(system, projection.float(), held_out)

    def save(self, path: Path) -> None:
        """Write the file, all of it or nothing."""
        tensors = {"system": self.system, "projection": self.projection}
        tensors |= as_tensors("held_out", self.held_out)
        save_whole(path, tensors, {_KEY: _bound_to()})

    @classmethod
    def load(cls, path: Path) -> Self | None:
        """The file's, None where it is none, or of other names or another bank."""
        try:
            with safe_open(path, "pt") as file:
                if (file.metadata() or {}).get(_KEY) != _bound_to():
                    return None
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return cls(
                tensors["system"],
                tensors["projection"],
                from_tensors("held_out", tensors),
            )
        except (OSError, SafetensorError, KeyError):
            return None


def _bound_to() -> str:
    """The names, and the bank, whose statistics are a part of the system."""
    return f"{names_digest()} {digest()}"


def _ridged(gram: Tensor) -> Tensor:
    return gram + RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)


def strangers_of(chat: ChatModel, profile: Profile, progress: Stages) -> Strangers:
    """Those of the cache; computed and kept where there are none of this profile, from where an
    earlier computation was killed."""
    layers = "-".join(map(str, profile.about.sense_layers))
    path = profile_path(chat.fitted_model).with_suffix(f".names-{layers}.safetensors")
    strangers = Strangers.load(path)
    if strangers is None:
        kept = checkpoints(chat, path, RECIPE, digest(), names_digest())
        strangers = Strangers.of(chat, profile, progress, kept)
        strangers.save(path)
        kept.clear()
    return strangers
