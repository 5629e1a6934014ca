"""Nearest-safe projection against one token at a time, and the states that it must not change."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from steering.hidden.rows import RowGuard
from steering.images.conditioning import Conditioning
from steering.images.embedding import EmbeddingBank
from steering.methods import nearest
from steering.methods.fitted import FittedGuard
from tests.steering.methods.random_guards import (
    STREAMS,
    WIDTHS,
    basis,
    bits_are_kept,
    guard,
    prompts,
)

Array = NDArray[Any]


def make(
    name: str, seed: int, rank: int, anchors: int, streams: tuple[str, ...] = STREAMS
) -> FittedGuard:
    rng = np.random.default_rng(seed)
    tensors = {}
    for stream in streams:
        width = WIDTHS[stream]
        tensors[f"basis.{stream}"] = basis(rank, width, rng)
        tensors[f"anchors.{stream}"] = rng.standard_normal((anchors, width))
        tensors[f"weights.{stream}"] = rng.standard_normal(width)
    return guard(name, tensors, {"bias": 0.1 * seed}, streams)


# at most three dimensions of four: subspaces of guards that are due together stay well apart
GUARDS = (make("a", 0, 1, 9), make("b", 1, 2, 4, ("clip", "t5")), make("c", 2, 1, 20))


def slow_act(
    text: Conditioning, row: int, due: list[int], strength: list[float], stream: str
) -> Array:
    """The least move that gives each guard's nearest anchor's coordinates, token by token."""
    x = text.states[stream][row].numpy().astype("f8")
    fitted = [i for i in due if stream in GUARDS[i].settings["streams"]]
    for token in range(len(x)):
        if not text.masks[stream][row, token]:
            continue
        bases, shifts = [], []
        for i in fitted:
            u = GUARDS[i].tensors[f"basis.{stream}"].astype("f8")
            outside = np.eye(len(x[token])) - u.T @ u
            anchors = GUARDS[i].tensors[f"anchors.{stream}"].astype("f8")
            gaps = [np.linalg.norm(outside @ (x[token] - anchor)) for anchor in anchors]
            nearest_anchor = anchors[int(np.argmin(gaps))]
            bases.append(u)
            shifts.append(strength[i] * (u @ (nearest_anchor - x[token])))
        if bases:
            b, shift = np.concatenate(bases), np.concatenate(shifts)
            x[token] = x[token] + np.linalg.pinv(b @ b.T, rcond=0.1) @ shift @ b
    return x


def test_due_rows_move_as_in_the_reference_and_the_others_keep_their_bits() -> None:
    text, guards = prompts(6), nearest.stack(GUARDS)
    due = torch.zeros(6, 3, dtype=torch.bool)
    due[0] = torch.tensor([True, True, True])
    due[2] = torch.tensor([False, True, False])
    due[4] = torch.tensor([True, False, True])
    due[5, 2] = True
    strength = torch.linspace(0.5, 1.5, 18).view(6, 3)
    acted = guards.act(text, due, torch.zeros(6, 3), strength)
    for row in (0, 2, 4, 5):
        for stream in STREAMS:
            columns = due[row].nonzero()[:, 0].tolist()
            expected = slow_act(text, row, columns, strength[row].tolist(), stream)
            np.testing.assert_allclose(acted.text.states[stream][row], expected, atol=2e-4)
    assert bits_are_kept(text, acted.text, due.any(1))
    assert acted.steps.tolist() == [1, 0, 1, 0, 1, 1] and acted.score.isnan().all()
    padding = ~text.masks["t5"]
    assert torch.equal(acted.text.states["t5"][padding], text.states["t5"][padding])


def test_a_state_takes_the_coordinates_of_its_anchor_and_keeps_the_rest() -> None:
    text, member = prompts(1), GUARDS[0]
    acted = nearest.stack([member]).act(
        text, torch.ones(1, 1, dtype=torch.bool), torch.zeros(1, 1), torch.ones(1, 1)
    )
    u, anchors = (torch.tensor(member.tensors[f"{kind}.clip"]) for kind in ("basis", "anchors"))
    before, after = text.states["clip"][0, 0], acted.text.states["clip"][0, 0]
    torch.testing.assert_close(after - u.T @ (u @ after), before - u.T @ (u @ before))
    assert ((anchors @ u.T) - u @ after).abs().amin() < 1e-5


def test_a_state_that_is_an_anchor_does_not_move() -> None:
    text, member = prompts(1), GUARDS[0]
    text.states["t5"][0, 3] = torch.tensor(member.tensors["anchors.t5"][5])
    acted = nearest.stack([member]).act(
        text, torch.ones(1, 1, dtype=torch.bool), torch.zeros(1, 1), torch.ones(1, 1)
    )
    torch.testing.assert_close(acted.text.states["t5"][0, 3], text.states["t5"][0, 3])


def test_in_a_bank_rows_with_and_without_guards_do_not_mix() -> None:
    text, guards = prompts(5), nearest.stack(GUARDS)
    low = float(guards.sense(text).amin()) - 1.0
    rows = [
        [RowGuard("a", low, 1.0), RowGuard("b", low, 1.0)],
        [],
        [RowGuard("c", 99.0, 1.0)],
        [RowGuard("b", low, 1.0, acts=False)],
        [RowGuard("a", low, 1.0)],
    ]
    bank = EmbeddingBank([guards])
    applied = bank.apply(text, rows)
    assert bits_are_kept(text, applied.text, torch.tensor([True, False, False, False, True]))
    assert applied.readings[3]["b"].fired and applied.readings[3]["b"].steps == 0
    assert applied.readings[4]["a"].resolved and applied.readings[4]["a"].after is None
    for row in (0, 4):
        alone = bank.apply(text.select(slice(row, row + 1)), rows[row : row + 1])
        for name, states in alone.text.states.items():
            torch.testing.assert_close(states[0], applied.text.states[name][row])


def test_not_a_number_is_invalid_not_silent() -> None:
    text = prompts(3)
    text.states["clip"][2, 0, 1] = torch.nan
    applied = EmbeddingBank([nearest.stack(GUARDS)]).apply(text, [[RowGuard("a", 9.0, 1.0)]] * 3)
    assert [row["a"].valid for row in applied.readings] == [True, True, False]


def test_stream_widths_must_agree() -> None:
    broken = dict(GUARDS[0].tensors)
    broken["anchors.t5"] = broken["anchors.t5"][:, :-1]
    with pytest.raises(ValueError, match="anchors and basis are of different widths"):
        nearest.stack([FittedGuard("a", broken, GUARDS[0].settings)])
