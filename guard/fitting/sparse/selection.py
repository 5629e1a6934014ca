"""Autoencoders from a file, or trained; which of their features tell a concept from the rest."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from guard.artifact import FittedModel
from guard.errors import DataError
from guard.fitting.checkpoints import Checkpoints
from guard.fitting.sparse.autoencoder import Autoencoders, SparseAutoencoder, mean_activations
from guard.fitting.sparse.training import Training, train_autoencoders
from guard.reporting.progress import Stages


def existing(
    path: Path, model: FittedModel, training: Training, given: Collection[str] = ()
) -> Autoencoders | None:
    """The autoencoders of the file `path`, None where there is none.

    Raises ArtifactError for a file of something else, FingerprintError for one of another model,
    and DataError for one that was trained with another of the settings that are `given`.
    """
    if not path.exists():
        return None
    found = Autoencoders.load(path)
    found.require_model(model, path)
    for name in sorted(given):
        wanted, has = float(getattr(training, name)), found.about.settings.get(name)
        if has != wanted:
            of_file = "another one" if has is None else f"{has:g}"
            raise DataError(
                f"--{name} {wanted:g}: {path} is there and was trained with {of_file}: leave the "
                "option out, or give another file"
            )
    return found


def trained(
    path: Path,
    model: FittedModel,
    states: Mapping[str, Tensor],
    training: Training,
    progress: Stages,
) -> Autoencoders:
    """Autoencoders of `states`, written to the file `path`. A training that is killed goes on where
    its checkpoint ends. Raises DataError as `train_autoencoders`."""
    digest = hashlib.sha256()
    for place, tensor in states.items():
        digest.update(place.encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    words = [model.fingerprint, digest.hexdigest(), *map(str, asdict(training).values())]
    kept = Checkpoints(path, " ".join(words))
    autoencoders = train_autoencoders(model, states, training, kept, progress)
    autoencoders.save(path)
    kept.clear()
    return autoencoders


def importance(autoencoder: SparseAutoencoder, concept: Tensor, others: Tensor) -> Tensor:
    """By how much larger a feature's share of all activations is on the states of a concept than
    on others, `[features]`; both `[n, width]` (SAeUron's score, arXiv 2501.18052)."""
    shares = []
    for states in (concept, others):
        mean = mean_activations(autoencoder, states)
        shares.append(mean / mean.sum().clamp(min=1e-12))
    return shares[0] - shares[1]


def most_telling(scores: Tensor, count: int, place: str) -> Tensor:
    """The indices of the `count` features with the highest scores, the highest first, of those over
    zero. Raises DataError where there is none."""
    best = scores.argsort(descending=True, stable=True)[:count]
    best = best[scores[best] > 0]
    if not len(best):
        raise DataError(
            f"no feature of {place} is more active on the concept than elsewhere: train an "
            "autoencoder with more --features, or on more prompts"
        )
    return torch.as_tensor(best)
