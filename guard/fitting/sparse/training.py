"""Training sparse autoencoders: BatchTopK (arXiv 2412.06410).

With `u = (h - mean) / size` of a state `h`, `z = relu(E (u - c) + b)`, of whose values in a batch
of n states the n·k largest stay as `f`, and `û = D f + c`. The loss is `|u - û|² / |u|²`;
directions in D are of unit length. `θ` is the mean of the smallest value that stays: with it a
feature is active whatever else is in the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from guard.artifact import FittedModel
from guard.errors import DataError
from guard.fitting.checkpoints import Checkpoints
from guard.fitting.resuming import Resumable, ResumableAdam, updates
from guard.fitting.sparse.autoencoder import (
    About,
    Autoencoders,
    SparseAutoencoder,
    explained,
)
from guard.reporting.progress import Stages
from steering.methods.sparse_features import SparseFeatures

HELD_OUT = 0.1
"""Share of the states on which figures are computed."""
FEWEST = 200
"""States of a place."""
EVERY = 200
"""Updates between two checkpoints."""
DECAY = 0.02
"""Of the mean of cuts, an update."""
FALLS = 0.2
"""Share of the updates, the last ones, over which the rate falls to zero."""


@dataclass(frozen=True)
class Training:
    """Settings: the number of `features` of a place, how many are `active` on a state in the mean,
    `updates` of `batch` states each, Adam's `rate`, which goes to zero over the last fifth."""

    features: int = 1024
    active: int = 16
    updates: int = 600
    batch: int = 256
    rate: float = 1e-3
    seed: int = 0

    def check(self) -> None:
        """Raise DataError for more active features than there are."""
        if self.active > self.features:
            raise DataError(
                f"{self.active} features cannot be active of {self.features}: give a lower "
                "--active or more --features"
            )


def train_autoencoders(
    model: FittedModel,
    states: Mapping[str, Tensor],
    training: Training,
    kept: Checkpoints,
    progress: Stages,
) -> Autoencoders:
    """An autoencoder for each place of `states`, `[n, width]` each. What is `kept` of a training
    that was killed is not done again. Raises DataError for too few states and a loss that is not
    finite."""
    training.check()
    by_place, figures = {}, {}
    for place, of_place in states.items():
        if len(of_place) < FEWEST:
            raise DataError(
                f"a sparse autoencoder needs {FEWEST} states at least, and the prompts have "
                f"{len(of_place)} tokens: give more prompts"
            )
        generator = torch.Generator().manual_seed(training.seed)
        order = torch.randperm(len(of_place), generator=generator)
        held_out = order[: max(1, int(HELD_OUT * len(order)))]
        advance = progress(f"autoencoder of {place}", training.updates)
        rest = of_place[order[len(held_out) :]].float()
        by_place[place] = train_one(rest, training, kept, place, advance)
        figures[place] = explained(by_place[place], of_place[held_out].float())
    settings = {name: float(value) for name, value in asdict(training).items()}
    about = About(model=model, places=tuple(states), settings=settings, figures=figures)
    return Autoencoders(about, by_place)


def train_one(
    states: Tensor,
    training: Training,
    kept: Checkpoints,
    place: str = "states",
    advance: Callable[[int], None] = lambda _updates: None,
) -> SparseAutoencoder:
    """The autoencoder of `states [n, width]`."""
    mean = states.mean(0)
    size = (states - mean).square().mean().sqrt()
    if not float(size) > 0.0:
        raise DataError(f"all states of {place} are alike: there are no features of them")
    scaled = (states - mean) / size
    begun = _Begun(scaled, training)
    optimiser = torch.optim.Adam(begun.parameters.values(), lr=training.rate)
    parts: dict[str, Resumable] = {"autoencoder": begun, "adam": ResumableAdam(optimiser)}
    for update in updates(training.updates, parts, kept, place, every=EVERY, advance=advance):
        if update % EVERY == 0:
            # drawn from the update's number, so that there is no state of it to keep
            generator = torch.Generator().manual_seed(1_000_003 * (training.seed + 1) + update)
        left = (training.updates - update) / (FALLS * training.updates)
        optimiser.param_groups[0]["lr"] = training.rate * min(1.0, left)
        drawn = torch.randint(len(scaled), (training.batch,), generator=generator)
        with torch.enable_grad():
            _update(scaled[drawn], begun, training, update)
        optimiser.step()
        with torch.no_grad():
            decoder = begun.parameters["decoder"]
            decoder.copy_(_unit(decoder))
    return _in_units(begun.state(), mean, size)


class _Begun:
    """An autoencoder that is being trained: parameters, and θ, the `cut []`."""

    def __init__(self, scaled: Tensor, training: Training) -> None:
        """Decoder rows are states at random, the encoder is the same."""
        generator = torch.Generator().manual_seed(training.seed)
        drawn = torch.randint(len(scaled), (training.features,), generator=generator)
        noise = torch.randn(training.features, scaled.shape[1], generator=generator)
        decoder = _unit(_unit(scaled[drawn]) + 0.3 * _unit(noise))
        self.parameters = {
            "encoder": decoder.clone().requires_grad_(),
            "bias": torch.zeros(training.features, requires_grad=True),
            "decoder": decoder.requires_grad_(),
            "centre": torch.zeros(scaled.shape[1], requires_grad=True),
        }
        self.cut = torch.tensor(0.0)

    def state(self) -> dict[str, Tensor]:
        return {name: each.detach() for name, each in self.parameters.items()} | {"cut": self.cut}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(state[name])
        self.cut = state["cut"]


def _update(batch: Tensor, begun: _Begun, training: Training, update: int) -> None:
    """The gradients of an update, and what is counted of it."""
    parameters = begun.parameters
    encoder, bias, decoder, centre = parameters.values()
    z = torch.relu((batch - centre) @ encoder.T + bias)
    most = min(len(batch) * training.active, z.numel())
    smallest = z.detach().flatten().topk(most).values[-1].clamp(min=1e-6)
    encoded = torch.where(z >= smallest, z, 0.0)
    left = batch - encoded @ decoder - centre
    loss = left.square().sum() / batch.square().sum()
    if not bool(loss.isfinite()):
        raise DataError(f"the loss of update {update + 1} is not finite: try a lower --rate")
    gradients = torch.autograd.grad(loss, list(parameters.values()))
    for parameter, gradient in zip(parameters.values(), gradients, strict=True):
        parameter.grad = gradient
    with torch.no_grad():
        # what would lengthen a direction is undone afterwards, and would only fill the moments
        along = (decoder * gradients[2]).sum(1, keepdim=True)
        decoder.grad = gradients[2] - along * decoder
        begun.cut = begun.cut + (DECAY if update else 1.0) * (smallest - begun.cut)


def _in_units(state: Mapping[str, Tensor], mean: Tensor, size: Tensor) -> SparseAutoencoder:
    """The autoencoder of states as the model has them: directions stay of unit length, so that an
    activation is what it adds."""
    encoder, centre = state["encoder"], state["centre"]
    features = SparseFeatures(
        reads=encoder.contiguous(),
        offsets=size * (state["bias"] - encoder @ centre) - encoder @ mean,
        cuts=(size * state["cut"]).expand(len(encoder)).contiguous(),
        writes=state["decoder"].contiguous(),
    )
    return SparseAutoencoder(features, mean + size * centre)


def _unit(rows: Tensor) -> Tensor:
    unit: Tensor = rows / rows.norm(dim=1, keepdim=True).clamp(min=1e-12)
    return unit
