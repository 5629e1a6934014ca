"""RECE's rounds against its published form: each layer edited by itself, each state derived by
least squares over all layers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from guard.fitting.images.closed_form.rece import Rece, derivation
from guard.fitting.images.closed_form.solver import gram
from guard.fitting.images.closed_form.states import ReplacedTokens, Tokens
from guard.fitting.images.closed_form.uce import Uce

WIDTH = 10
KEEP, RIDGE, DERIVE = 0.2, 0.05, 0.1


def random(rows: int, columns: int, seed: int) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)).double()


CONCEPT, STEAD, KEPT = (random(rows, WIDTH, i) for i, rows in enumerate((3, 3, 8)))
LAYERS = [random(out, WIDTH, 10 + out) for out in (4, 6, 7)]


def edited(weight: Tensor, states: Tensor, targets: Tensor) -> Tensor:
    """One layer by UCE's equation, with `targets` for its outputs, term by term."""
    left, right = RIDGE * weight, RIDGE * torch.eye(WIDTH).double()
    for state, target in zip(states, targets, strict=True):
        left, right = left + torch.outer(target, state), right + torch.outer(state, state)
    for kept in KEPT:
        left = left + KEEP * torch.outer(weight @ kept, kept)
        right = right + KEEP * torch.outer(kept, kept)
    return left @ torch.linalg.inv(right)


def brought_back(layers: list[Tensor], state: Tensor) -> Tensor:
    """argmin Σ ‖W'c' - Wc‖² + λ‖c'‖², by least squares on stacked rows."""
    rows = torch.cat([*layers, DERIVE**0.5 * torch.eye(WIDTH).double()])
    right = torch.cat([*(weight @ state for weight in LAYERS), torch.zeros(WIDTH).double()])
    solution: Tensor = torch.linalg.lstsq(rows, right[:, None]).solution[:, 0]
    return solution


def published(rounds: int) -> list[list[Tensor]]:
    layers = [edited(weight, CONCEPT, STEAD @ weight.T) for weight in LAYERS]
    after = []
    for _ in range(rounds):
        derived = torch.stack([brought_back(layers, state) for state in CONCEPT])
        layers = [edited(weight, derived, STEAD @ weight.T) for weight in layers]
        after.append(layers)
    return after


def sums_of(rounds: int) -> list[Tensor]:
    sums = Rece(Uce(keep=KEEP, ridge=RIDGE), DERIVE, rounds).sums(WIDTH)
    sums.keep(Tokens(KEPT, torch.zeros(8).bool()))
    sums.erase(ReplacedTokens(CONCEPT, torch.zeros(3).bool(), STEAD))
    return [edit.change for edit in sums.edits(gram(LAYERS))]


def test_a_derived_state_is_the_published_minimum() -> None:
    layers = [edited(weight, CONCEPT, STEAD @ weight.T) for weight in LAYERS]
    # the shared right factor of all edits
    factor = torch.linalg.lstsq(torch.cat(LAYERS), torch.cat(layers)).solution
    derived = derivation(gram(LAYERS), factor, DERIVE)
    for state in CONCEPT:
        expected = brought_back(layers, state)
        torch.testing.assert_close(derived @ state, expected, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("rounds", [1, 3])
def test_every_round_is_the_published_edit_of_every_layer(rounds: int) -> None:
    changes = sums_of(rounds)
    for change, layers in zip(changes, published(rounds), strict=True):
        for weight, expected in zip(LAYERS, layers, strict=True):
            got = weight + weight @ change
            torch.testing.assert_close(got, expected, atol=1e-8, rtol=1e-8)


def test_a_round_takes_what_its_derived_states_bring_back() -> None:
    before, after = published(2)[0], sums_of(2)[1]
    derived = torch.stack([brought_back(before, state) for state in CONCEPT])
    reached = sum(
        float((w @ d - w0 @ c).norm())
        for w, w0 in zip(before, LAYERS, strict=True)
        for d, c in zip(derived, CONCEPT, strict=True)
    )
    left = sum(
        float((w0 @ (d + after @ d) - w0 @ c).norm())
        for w0 in LAYERS
        for d, c in zip(derived, CONCEPT, strict=True)
    )
    assert left > 2 * reached
