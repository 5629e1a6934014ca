"""Cuts in the metric of the states that layers are given."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from guard.errors import DataError
from guard.fitting.overlays.base import Base
from guard.fitting.overlays.changes import Change
from guard.fitting.overlays.cutting import RIDGE, energies, factors_of
from guard.fitting.overlays.factors import Factors


class _Network(nn.Module):
    """Layers of every kind that overlays serve, each given states of a few directions."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tall, self.wide = nn.Linear(6, 20), nn.Linear(20, 6)
        self.conv = nn.Conv2d(3, 5, 3, stride=2, padding=1)
        self.idle = nn.Linear(4, 4)

    def forward(self, states: Tensor, image: Tensor) -> None:
        self.wide(self.tall(states))
        self.conv(image)


def _inputs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    spread = torch.tensor([5.0, 2.0, 1.0, 0.3, 0.1, 0.01])
    states = torch.randn(40, 7, 6, generator=generator) * spread
    return states, torch.randn(8, 3, 9, 9, generator=generator)


def _changes() -> dict[str, Change]:
    generator = torch.Generator().manual_seed(2)
    shapes = {"tall": (20, 6), "wide": (6, 20), "conv": (5, 3, 3, 3), "idle": (4, 4)}
    return {n: Change(torch.randn(shape, generator=generator)) for n, shape in shapes.items()}


def _factors(changes: dict[str, Change], rank: int | None, default: int = 64) -> Factors:
    network = _Network()
    with torch.no_grad(), energies(Base({"": network}), changes) as recorded:
        network(*_inputs())
    assert recorded.keys() == changes.keys() - {"idle"}
    return factors_of(changes, recorded, rank, default)


def _inputs_of(layer: str) -> Tensor:
    """`[places, in]` that the layer is given; patches of a convolution."""
    network = _Network()
    states, image = _inputs()
    if layer == "conv":
        return nn.functional.unfold(image, 3, padding=1, stride=2).mT.flatten(0, 1)
    return (states if layer == "tall" else network.tall(states).detach()).flatten(0, 1)


@pytest.mark.parametrize("layer", ["tall", "wide", "conv"])
@pytest.mark.parametrize("rank", [1, 2, 4])
def test_a_cut_is_the_best_one_of_its_rank_over_the_inputs(layer: str, rank: int) -> None:
    """Against the cut by `C^{1/2}`, as the equation says it."""
    changes = _changes()
    factors = _factors(changes, rank)
    delta, x = changes[layer].read.flatten(1).double(), _inputs_of(layer).double()
    moment = x.mT @ x + RIDGE * x.square().mean() * len(x) * torch.eye(x.shape[1])
    if layer == "conv":  # its ridge is in units of the image's mean square, without the padding
        image = _inputs()[1].double()
        moment = x.mT @ x + RIDGE * image.square().mean() * len(x) * torch.eye(x.shape[1])
    values, vectors = torch.linalg.eigh(moment)
    root = (vectors * values.sqrt()) @ vectors.T
    left, singular, right = torch.linalg.svd(delta @ root, full_matrices=False)
    best = (left[:, :rank] * singular[:rank]) @ right[:rank] @ torch.linalg.inv(root)
    got = (factors.writes[layer].T @ factors.reads[layer].flatten(1)).double()
    torch.testing.assert_close(got, best, atol=1e-4, rtol=1e-4)
    share = float(singular[:rank].square().sum() / singular.square().sum())
    assert factors.share(layer) == pytest.approx(share, abs=1e-5)
    assert len(factors.reads[layer]) == rank


def test_a_cut_over_the_inputs_keeps_more_than_one_of_the_weights_alone() -> None:
    changes = _changes()
    factors, x = _factors(changes, 2), _inputs_of("tall")
    delta = changes["tall"].read
    left, singular, right = torch.linalg.svd(delta, full_matrices=False)
    plain = (left[:, :2] * singular[:2]) @ right[:2]
    cut = factors.writes["tall"].T @ factors.reads["tall"]
    lost = [((delta - other) @ x.T).square().sum() for other in (cut, plain)]
    assert lost[0] < 0.5 * lost[1]


def test_no_more_directions_are_kept_than_a_change_has() -> None:
    noise = 1e-4 * torch.randn(20, 6, generator=torch.Generator().manual_seed(4))
    change = Change(torch.ones(20, 1) @ torch.ones(1, 6) + noise)
    factors = _factors({"tall": change, "idle": _changes()["idle"]}, None)
    assert len(factors.reads["tall"]) == 1 and factors.share("tall") > 0.999


def test_adapters_are_exact_unless_a_cut_is_asked_for() -> None:
    generator = torch.Generator().manual_seed(3)
    change = Change(torch.randn(4, 6, generator=generator), torch.randn(20, 4, generator=generator))
    changes = {"tall": change, "idle": _changes()["idle"]}
    exact = _factors(changes, None, default=1)
    assert torch.equal(exact.reads["tall"], change.read) and not exact.shares
    cut = _factors(changes, 2)
    assert len(cut.reads["tall"]) == 2 and 0.5 < cut.share("tall") < 1.0
    whole = _factors(changes, 4)
    assert change.write is not None
    full = change.write @ change.read
    torch.testing.assert_close(
        whole.writes["tall"].T @ whole.reads["tall"], full, rtol=1e-2, atol=0.1
    )


def test_what_keeps_too_little_is_refused_with_the_rank_that_would_do() -> None:
    changes = _changes()
    factors = _factors(changes, 1)
    with pytest.raises(
        DataError, match="layers keep less than 90%.*--rank (.*), or a lower --least-"
    ) as e:
        factors.require_kept(0.9)
    factors.require_kept(0.1)
    rank = int(str(e.value).partition("--rank ")[2].partition(",")[0])
    _factors(changes, rank).require_kept(0.9)
    with pytest.raises(DataError):
        _factors(changes, rank - 1).require_kept(0.9)


def test_a_rank_larger_than_the_layers_is_refused() -> None:
    with pytest.raises(DataError, match="a rank of 7 is larger than that of any layer: at most 6"):
        _factors(_changes(), 7)
    wide = Change(torch.ones(7, 6), torch.ones(20, 7))
    with pytest.raises(DataError, match="the factors of tall have the rank 7.*the layer's, 6: ask"):
        _factors({"tall": wide, "idle": _changes()["idle"]}, None)


def test_a_layer_that_is_given_zeros_alone_is_cut_by_its_weights() -> None:
    network, changes = _Network(), {"idle": _changes()["idle"]}
    with torch.no_grad(), energies(Base({"": network}), changes) as recorded:
        network.idle(torch.zeros(3, 4))
    factors = factors_of(changes, recorded, 2, 64)
    singular = torch.linalg.svdvals(changes["idle"].read.double()).square()
    assert factors.share("idle") == pytest.approx(float(singular[:2].sum() / singular.sum()))
