"""The moments of TRCE and RealEra: which states they sum over, and with which weights."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from guard.data.concept import Concept
from guard.fitting.images.closed_form.realera import RealEra, at_cosines, spread
from guard.fitting.images.closed_form.states import ReplacedTokens, Tokens
from guard.fitting.images.closed_form.trce import Trce
from guard.fitting.images.closed_form.uce import Uce
from guard.fitting.prompts.twins import TEMPLATES

WIDTH = 8


def random(rows: int, seed: int) -> Tensor:
    return torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(seed)).double()


PHRASES = {"train": ["a knife", "a blade"]}
CONCEPT = Concept.model_validate(
    {
        "name": "object/knife",
        "phrases": PHRASES,
        "hard_negatives": ["a", "b", "c", "d", "e", "f"],
        "replacements": ["a spoon"],
    }
)
LAST = torch.tensor([False, False, True, False, True])


@pytest.mark.parametrize("weight", [0.0, 0.25])
def test_trce_moves_the_end_marks_as_the_paper_says(weight: float) -> None:
    states, stead, kept, layer = random(5, 0), random(5, 1), random(7, 2), random(3, 3)
    sums = Trce("a spoon", keep=0.3, ridge=0.01, token_weight=weight).sums(WIDTH)
    sums.keep(Tokens(kept, torch.arange(7) == 6))
    sums.erase(ReplacedTokens(states, LAST, stead))
    left, right = 0.01 * layer, 0.01 * torch.eye(WIDTH).double()
    for e_m, e_s, last in zip(states, stead, LAST, strict=True):
        share = (1.0 if last else weight) / 2  # two prompts
        left = left + share * torch.outer(layer @ e_s, e_m)
        right = right + share * torch.outer(e_m, e_m)
    for e_k in kept:
        left = left + 0.3 * torch.outer(layer @ e_k, e_k)
        right = right + 0.3 * torch.outer(e_k, e_k)
    (edit,) = sums.edits(torch.eye(WIDTH).double())
    torch.testing.assert_close(layer + layer @ edit.change, left @ torch.linalg.inv(right))


def test_the_twin_of_a_prompt_has_the_same_form() -> None:
    pairs = Trce("a spoon").replaced(CONCEPT)
    assert len(pairs) == 2 * len(TEMPLATES) == 30
    assert ("a drawing of a blade", "a drawing of a spoon") in pairs
    style = CONCEPT.model_copy(update={"ending": True})
    assert ("a chair a blade", "a chair a spoon") in Trce("a spoon").replaced(style)


@pytest.mark.parametrize("cosine", [0.95, 0.5, 0.0])
def test_samples_have_the_cosine_that_is_asked_for(cosine: float) -> None:
    states = 3.0 * random(50, 0)
    sampled, found = at_cosines(
        states, random(50, 1), torch.full((50,), cosine, dtype=torch.float64), 5.0
    )
    assert found.sum() > 5
    got = torch.cosine_similarity(sampled[found], states[found])
    torch.testing.assert_close(got, torch.full_like(got, cosine), atol=1e-9, rtol=0)
    reach = (sampled - states).norm(dim=1) / states.norm(dim=1)
    assert bool((reach[found] <= 5.0).all())


def test_a_radius_leaves_out_what_is_further() -> None:
    states, directions = random(200, 0), random(200, 1)
    cosines = torch.full((200,), 0.7).double()
    _, all_found = at_cosines(states, directions, cosines, 100.0)
    sampled, found = at_cosines(states, directions, cosines, 1.0)
    far = (sampled - states).norm(dim=1) > states.norm(dim=1)
    assert torch.equal(found, all_found & ~far) and bool((far & all_found).any())


def test_the_spread_is_that_of_the_states() -> None:
    covariance = torch.diag(torch.tensor([1.0, 9.0, 0.0, 4.0]).double())
    assert spread(covariance, 2).abs().tolist() == [[0, 3, 0, 0], [0, 0, 0, 2]]
    assert torch.equal(spread(covariance, 0), torch.eye(4).double())


def test_neighbours_are_erased_and_what_is_beyond_is_not() -> None:
    kept = random(300, 5)
    state, stead = random(1, 0), random(1, 1)
    wide = RealEra(Uce(), near=0.8, far=0.2, radius=5.0, samples=400, directions=WIDTH)
    tokens = ReplacedTokens(state, torch.tensor([True]), stead)

    def change(settings: RealEra | Uce) -> Tensor:
        sums = settings.sums(WIDTH)
        sums.keep(Tokens(kept, torch.ones(300).bool()))
        sums.erase(tokens)
        (edit,) = sums.edits(torch.eye(WIDTH).double())
        return edit.change

    def moved(edit: Tensor, cosine: float) -> float:
        """How far samples at a cosine come towards the replacement, as a share of the way."""
        samples, found = at_cosines(
            state.expand(200, -1), random(200, 9), torch.full((200,), cosine).double(), 5.0
        )
        way, done = (stead - samples)[found], (samples @ edit.T)[found]
        return float(((way * done).sum(1) / way.square().sum(1)).mean())

    era, uce = change(wide), change(Uce())
    assert moved(era, 0.9) > moved(uce, 0.9)
    assert moved(era, 0.9) > 2 * moved(era, 0.3)
