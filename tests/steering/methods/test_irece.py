"""IRECE's maths on maps and classifiers that are easy to follow."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from classifiers.latents import LatentClassifiers, LatentRecipe, train_latents
from steering.images.latent import LatentEvidence
from steering.methods import irece
from steering.methods.fitted import FittedGuard
from steering.methods.irece import REPLACEMENTS, mask_of, replaced, smoothed, standing_out

CHANNELS, SIDE = 4, 16
SETTINGS: dict[str, Any] = {
    "threshold": 0.0,
    "level": 0.8,
    "looks": 3,
    "votes": 1.0,
    "mask": 0.5,
    "smoothing": 0.05,
    "replacement": "background",
    "reads": [["layer", 1]],
}


def with_spot(count: int, seed: int, *, shown: bool = True) -> tuple[Tensor, Tensor]:
    """Noise with the concept in 4 x 4 places of the first two channels, and its mask."""
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(count, CHANNELS, SIDE, SIDE, generator=generator)
    where = torch.zeros(count, SIDE, SIDE)
    for i in range(count):
        x, y = torch.randint(0, SIDE - 4, (2,), generator=generator).tolist()
        where[i, y : y + 4, x : x + 4] = 1.0
    if shown:
        latents[:, :2] += 5.0 * where[:, None]
    return latents, where


@pytest.fixture(scope="module")
def tensors() -> dict[str, Any]:
    """A classifier that has learned the spot, and the keys of one read."""
    shown, _ = with_spot(80, 1)
    plain, _ = with_spot(80, 2, shown=False)
    label = torch.arange(160) < 80
    classifiers = train_latents(torch.cat([shown, plain]), label, LatentRecipe(steps=60), seed=0)
    arrays = {f"weight{i}.latents": w.numpy() for i, w in enumerate(classifiers.weights)}
    arrays |= {f"bias{i}.latents": b.numpy() for i, b in enumerate(classifiers.biases)}
    return arrays | {
        "keys0.attention": torch.ones(2, 8).numpy(),
        "others0.attention": torch.ones(3, 8).numpy(),
    }


def guard(tensors: dict[str, Any], name: str = "p", **changed: Any) -> FittedGuard:
    return FittedGuard(name, tensors, SETTINGS | changed)


def evidence_of(estimate: Tensor, votes: Tensor, attended: Tensor) -> LatentEvidence:
    pairs = len(estimate)
    return LatentEvidence(
        guard=torch.zeros(pairs, dtype=torch.long),
        estimate=estimate,
        unconditional=torch.full_like(estimate, 3.0),
        votes=votes,
        attended=attended,
        owner=torch.arange(pairs),
    )


def test_votes_and_attention_locate_the_concept(tensors: dict[str, Any]) -> None:
    guards = irece.stack([guard(tensors)])
    latents, where = with_spot(20, 3)
    plain, _ = with_spot(20, 4, shown=False)
    score, votes = guards.sense(latents, [0])
    assert (score > guards.sense(plain, [0])[0].max()).float().mean() > 0.9
    attended = where + 0.3 * torch.randn(where.shape, generator=torch.Generator().manual_seed(0))
    location = guards.locate(evidence_of(latents, votes[:, 0], attended))
    overlap = (location.mask * where).sum((1, 2)) / torch.maximum(location.mask, where).sum((1, 2))
    assert overlap.mean() > 0.4
    assert location.peak.min() > 2
    # votes alone, attention alone
    for changed, maps in (({"reads": []}, attended[:0]), ({"votes": 0.0}, attended)):
        single = irece.stack([guard(tensors, **changed)])
        owners = evidence_of(latents, votes[:, 0], maps)
        owners = LatentEvidence(**{**vars(owners), "owner": torch.arange(len(maps))})
        peak = single.locate(owners).mask
        assert ((peak * where).sum((1, 2)) > 0).float().mean() > 0.9


def test_each_guard_has_its_settings(tensors: dict[str, Any]) -> None:
    wide, narrow = guard(tensors, "wide", mask=0.1), guard(tensors, "narrow", mask=0.9)
    guards = irece.stack([wide, narrow])
    latents, where = with_spot(6, 5)
    _, votes = guards.sense(latents, [0, 1])
    shared = evidence_of(latents, votes[:, 0], where)
    area = {}
    for column in (0, 1):
        evidence = LatentEvidence(**{**vars(shared), "guard": torch.full((6,), column)})
        area[column] = guards.locate(evidence).mask.mean()
    assert area[0] > 2 * area[1] > 0
    mixed = LatentEvidence(**{**vars(shared), "guard": torch.tensor([0, 1, 0, 1, 0, 1])})
    sizes = guards.locate(mixed).mask.mean((1, 2))
    assert (sizes[::2] > sizes[1::2]).all()


def test_an_estimate_that_is_not_finite_has_no_score(tensors: dict[str, Any]) -> None:
    latents, _ = with_spot(2, 6)
    latents[1, 0, 0, 0] = torch.inf
    score, _ = irece.stack([guard(tensors)]).sense(latents, [0])
    assert score[0].isfinite() and score[1].isnan()


def test_maps_are_compared_as_deviations() -> None:
    maps = torch.rand(3, 5, 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        standing_out(maps), standing_out(100 * maps - 7), rtol=1e-4, atol=1e-4
    )
    assert (standing_out(torch.full((1, 5, 5), 3.0)) == 0).all()


@pytest.mark.filterwarnings("error")
def test_no_maps_are_none_without_a_warning() -> None:
    assert standing_out(torch.zeros(0, 5, 5)).shape == (0, 5, 5)


def test_a_mask_rises_from_the_median_and_a_flat_map_has_none() -> None:
    ramp = torch.arange(100.0).view(1, 10, 10)
    share = mask_of(ramp, torch.tensor([0.5])).mean()
    assert float(share) == pytest.approx(0.25, abs=0.02)
    assert not mask_of(torch.ones(1, 10, 10), torch.tensor([0.5])).any()


@pytest.mark.parametrize("shape", [(9, 9), (3, 9, 9)])
def test_smoothing_keeps_the_sum_and_each_map_has_its_width(shape: tuple[int, ...]) -> None:
    maps = torch.zeros(2, *shape)
    maps[..., 4, 4] = 1.0
    flat = torch.full((2, *shape), 3.0)
    width = torch.tensor([0.05, 0.2])
    smooth = smoothed(maps, width)
    torch.testing.assert_close(smoothed(flat, width), flat)
    torch.testing.assert_close(smooth.sum((-1, -2)), maps.sum((-1, -2)), rtol=0.05, atol=0.05)
    assert (smooth[0, ..., 4, 4] > 2 * smooth[1, ..., 4, 4]).all()


def test_smoothing_of_a_map_does_not_depend_on_others() -> None:
    maps = torch.rand(2, 16, 16, generator=torch.Generator().manual_seed(1))
    alone = smoothed(maps[:1], torch.tensor([0.06]))
    together = smoothed(maps, torch.tensor([0.06, 0.4]))[:1]
    torch.testing.assert_close(together, alone)


@pytest.mark.parametrize("shape", [(17, 128), (65, 65), (9, 16), (3, 16, 65)])
def test_votes_are_at_their_places(shape: tuple[int, ...]) -> None:
    height, width = shape[-2:]
    latents = torch.zeros(1, CHANNELS, *shape)
    latents[..., height // 2 :, width // 2 :] = 1.0
    nothing = torch.zeros(1, 1)
    first = torch.zeros(1, 1, CHANNELS, 3, 3)
    first[..., 1, 1] = 1.0
    half = torch.zeros(1, 1, 1, 3, 3)
    half[..., 1, 1] = 1.0
    weights = first, half, half, half, half[..., 1:2, 1:2]
    votes = LatentClassifiers(weights, (nothing,) * 5).votes(latents)[:, 0]
    votes_grid = irece.votes_map(votes, shape)[0]
    inside = latents[0, 0].bool()
    assert votes_grid[inside].mean() > 0.5 > -0.2 > votes_grid[~inside].mean()
    corner = votes_grid[..., -1, -1]
    assert (corner > 0).all() and (votes_grid[..., 0, :] < corner[..., None]).all()


def test_each_replacement_is_what_its_name_says() -> None:
    estimate = torch.arange(32.0).view(1, 2, 4, 4).expand(3, -1, -1, -1).clone()
    mask = torch.zeros(3, 4, 4)
    mask[:, :2] = 1.0
    kind = torch.tensor([REPLACEMENTS.index(n) for n in ("background", "unconditional", "zero")])
    other = torch.full_like(estimate, 9.0)
    background, unconditional, zero = replaced(estimate, other, mask, kind)
    assert (background[0] == estimate[0, 0, 2:].mean()).all()
    assert (background[1] == estimate[0, 1, 2:].mean()).all()
    assert (unconditional == 9.0).all() and (zero == 0.0).all()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"reads": "all"}, "reads must be a list"),
        ({"reads": [["layer"]]}, "a read must be a layer and a head"),
        ({"reads": [["layer", -1]]}, "-1 is no head"),
        ({"reads": [["layer", True]]}, "True is no head"),
        ({"reads": [["layer", 0], ["layer", 1]]}, "no tensor 'keys1.attention'"),
        ({"replacement": "a cat"}, "replacement must be one of background"),
        ({"level": 0.0}, "level must lie in 0..1"),
        ({"looks": 0}, "looks be 1 to 1000"),
        ({"looks": 2.5}, "looks be 1 to 1000"),
        ({"mask": "half"}, "mask must be a finite number"),
        ({"mask": 1.5}, "mask must lie in 0..1"),
        ({"votes": -1.0}, "votes must lie in 0..1000"),
        ({"smoothing": 1e9}, "smoothing must lie in 0..0.5"),
        ({"reads": [], "votes": 0.0}, "without reads and votes it cannot locate"),
    ],
)
def test_an_invalid_artifact_is_refused(
    tensors: dict[str, Any], changed: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        irece.stack([guard(tensors, **changed)])


def test_keys_of_two_widths_are_refused(tensors: dict[str, Any]) -> None:
    uneven = tensors | {"others0.attention": torch.ones(3, 7).numpy()}
    with pytest.raises(ValueError, match="keys and others of layer differ in width"):
        irece.stack([guard(uneven)])
