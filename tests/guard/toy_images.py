"""A toy text encoder and guards on it, for plans and services of images.

Each character is a token. The first number of its state marks `CONCEPT`, the second `STUBBORN`,
which no refinement removes; the state of `NAN` is NaN. The third number marks `PAINTED`, which no
guard of prompts detects and every image shows; the fourth `BLINDING`, whose image is NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from classifiers.latents import LatentClassifiers
from guard.artifact import Artifact, ArtifactMeta
from steering.engines.diffusion.families import Family
from steering.fingerprint import fingerprint
from steering.images.conditioning import Conditioning
from steering.images.embedding import Refinement
from steering.images.guidance import Predictions
from steering.methods import METHODS, Method
from steering.methods.fitted import FittedGuard
from tests.classifiers.nets import random_net, tensors_of

TOKENS, WIDTH = 12, 4
CONCEPT, STUBBORN, NAN = "K", "S", "~"
PAINTED, BLINDING = "P", "Q"
STEPS = 3


class ToyFamily:
    """The parts of a family that plans and engines need to guard prompts and images."""

    def __init__(self, seed: int = 0) -> None:
        torch.manual_seed(seed)
        table = torch.rand(256, WIDTH) / 100
        for column, letters in enumerate((CONCEPT + STUBBORN, STUBBORN, PAINTED, BLINDING)):
            for letter in letters:
                table[ord(letter), column] = 1.0
        table[ord(NAN)] = torch.nan
        self._table = nn.Embedding.from_pretrained(table)
        self.encoders = {"text": self._table}
        self.autoencoder: nn.Module = nn.Linear(WIDTH, WIDTH)
        self.channels = WIDTH

    def latents(self, text: Conditioning) -> Tensor:
        """The latents of the image of `text`, one place a token: `[rows, WIDTH, 1, TOKENS]`."""
        states = text.states["text"]
        latents = states.masked_fill((states[..., 3] > 0.5)[..., None], torch.nan)
        return latents.transpose(1, 2)[:, :, None]

    def encode_image(self, pixels: Tensor) -> Tensor:
        """The latents of images `[rows, height, width, 3]`: the redder, the more `PAINTED`."""
        latents = torch.zeros(len(pixels), WIDTH, 1, TOKENS)
        red = pixels[..., 0] - pixels[..., 1:].amax(-1)
        latents[:, 2] = red.clamp(min=0).mean((1, 2))[:, None, None]
        return latents

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        return self._windows([prompt[:TOKENS] for prompt in prompts])

    def overflow(self, prompts: Sequence[str]) -> list[Conditioning | None]:
        return [self._rest(prompt) for prompt in prompts]

    def _rest(self, prompt: str) -> Conditioning | None:
        windows = [prompt[at : at + TOKENS] for at in range(TOKENS, len(prompt), TOKENS)]
        return self._windows(windows) if windows else None

    def _windows(self, texts: Sequence[str]) -> Conditioning:
        ids = [[min(ord(letter), 255) for letter in text.ljust(TOKENS, "\0")] for text in texts]
        masks = [[at < max(len(text), 1) for at in range(TOKENS)] for text in texts]
        with torch.no_grad():
            states = self._table(torch.tensor(ids))
        return Conditioning({"text": states}, {"text": torch.tensor(masks)})


class ToyGuards:
    """Guards that fire on `CONCEPT`; acting removes it, unless it is `STUBBORN`."""

    def __init__(self, guards: Sequence[FittedGuard]) -> None:
        self.names: Sequence[str] = [guard.name for guard in guards]
        weights = [guard.tensor("weights", "text", 1) for guard in guards]
        if any(not bool(weight.any()) for weight in weights):
            raise ValueError("weights are all zero")
        self._weights = torch.stack(weights, 1)

    def sense(self, text: Conditioning) -> Tensor:
        scores = text.states["text"] @ self._weights
        return scores.masked_fill(~text.masks["text"][..., None], 0.0).amax(1)

    def act(
        self, text: Conditioning, due: Tensor, threshold: Tensor, strength: Tensor
    ) -> Refinement:
        states = text.states["text"].clone()
        states[..., 0] = states[..., 1]
        changed = text.with_states({"text": states})
        return Refinement(changed, STEPS * due.any(1).long(), self.sense(changed))


class NanGuards(ToyGuards):
    """Guards whose score is NaN where they should fire."""

    def sense(self, text: Conditioning) -> Tensor:
        scores = super().sense(text)
        return scores.masked_fill(scores > 0.5, torch.nan)


class FailingGuards(ToyGuards):
    """Guards that sense, but cannot act on the states of this encoder."""

    def act(
        self, text: Conditioning, due: Tensor, threshold: Tensor, strength: Tensor
    ) -> Refinement:
        raise RuntimeError("shapes differ\nand more of that")


class ToyGuidanceGuards(ToyGuards):
    """Guards that fire in the same way, and act on the guidance."""

    def __init__(self, guards: Sequence[FittedGuard]) -> None:
        super().__init__(guards)
        states = torch.stack([guard.tensor("concept", "text", 2) for guard in guards])
        self.per_guard = 1
        self.conditions: Conditioning | None = Conditioning(
            {"text": states}, {"text": torch.ones(states.shape[:2], dtype=torch.bool)}
        )

    def act(
        self, text: Conditioning, due: Tensor, threshold: Tensor, strength: Tensor
    ) -> Refinement:
        return Refinement.none(text, strength)

    def term(self, at: Predictions) -> tuple[Tensor, Tensor]:
        return at.concept - at.unconditional, at.memory


_REFINE = Method(
    "toy",
    seam="embedding",
    stack=lambda guards, device: ToyGuards(guards),
    action="refine",
    bound_to="encoders",
    decides="before",
    gradient="straight-through",
)

TOY_METHODS: dict[str, Method] = {
    "toy": _REFINE,
    "toy-blind": replace(_REFINE, stack=lambda guards, device: NanGuards(guards)),
    "toy-stiff": replace(_REFINE, stack=lambda guards, device: FailingGuards(guards)),
    "toy-guide": replace(
        _REFINE,
        seam="guidance",
        action="steer",
        stack=lambda guards, device: ToyGuidanceGuards(guards),
    ),
}
TOY_METHODS = {name: replace(method, name=name) for name, method in TOY_METHODS.items()}
"""Entries for the table of methods."""


def restack(monkeypatch: pytest.MonkeyPatch, name: str, stack: Any) -> None:
    """Stack the guards of a method with another function."""
    monkeypatch.setitem(METHODS, name, replace(METHODS[name], stack=stack))


def save_latents(
    path: Path, *, fitted_on: str = "", channels: int = WIDTH, **settings: Any
) -> Path:
    """Save a classifier of ToyFamily's latents, of two members, that fires on `PAINTED`."""
    first = torch.zeros(2, 1, channels, 3, 3)
    first[:, 0, 2, 1, 1] = 4.0
    second = torch.zeros(2, 1, 1, 3, 3)
    second[..., 1, :] = 1.0
    votes = torch.tensor([5.0, 6.0]).view(2, 1, 1, 1, 1)
    bias = torch.zeros(2, 1)
    net = LatentClassifiers((first, second, votes), (bias, bias, bias - 10.0))
    return _save_net(
        path, net, fitted_on=fitted_on or fingerprint(ToyFamily().autoencoder), **settings
    )


def save_drawn_latents(
    path: Path, family: Family, *, channels: int | None = None, **settings: Any
) -> LatentClassifiers:
    """Save an untrained classifier of two members for the latents of `family`."""
    net = random_net(2, family.channels if channels is None else channels)
    _save_net(path, net, fitted_on=fingerprint(family.autoencoder), **settings)
    return net


def _save_net(path: Path, net: LatentClassifiers, **changed: Any) -> Path:
    return save_toy(
        path,
        method="latents",
        seams=["latent"],
        tensors=tensors_of(net),
        width=net.channels,
        **changed,
    )


def save_toy(
    path: Path,
    *,
    method: str = "toy",
    fitted_on: str = "",
    seams: Sequence[str] = ("embedding",),
    tensors: dict[str, Any] | None = None,
    width: int = WIDTH,
    **settings: Any,
) -> Path:
    """Save an artifact for ToyFamily, or a model of that width; `settings` replace the defaults."""
    meta = ArtifactMeta.model_validate(
        {
            "method": method,
            "concept": f"object/{path.stem}",
            "created": "2026-01-31",
            "model": {
                "name": "toy",
                "architecture": "Toy",
                "fingerprint": fitted_on or fingerprint(nn.ModuleDict(ToyFamily().encoders)),
                "layers": 1,
                "width": width,
            },
            "seams": list(seams),
            "settings": {"threshold": 0.5, "strength": 1.0, "streams": ["text"]} | settings,
        }
    )
    weights = {"weights.text": np.eye(1, WIDTH, dtype="f4")[0]}
    if method == "toy-guide":
        weights["concept.text"] = np.zeros((TOKENS, WIDTH), "f4")
    Artifact(meta, weights if tensors is None else tensors).save(path)
    return path
