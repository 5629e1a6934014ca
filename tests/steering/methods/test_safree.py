"""SAFREE against one token and one guard at a time, and the states that it must not change."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from steering.hidden.rows import RowGuard
from steering.images.conditioning import Conditioning
from steering.images.embedding import EmbeddingBank
from steering.methods import safree
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


def make(name: str, seed: int, rank: int, streams: tuple[str, ...] = STREAMS) -> FittedGuard:
    rng = np.random.default_rng(seed)
    tensors = {}
    for stream in streams:
        tensors[f"basis.{stream}"] = basis(min(rank, WIDTHS[stream]), WIDTHS[stream], rng)
        tensors[f"centre.{stream}"] = 0.3 * rng.standard_normal(WIDTHS[stream])
    settings = {"alpha": 0.01 * seed, "slope": 4.0, "middle": 0.2, "sense_rank": 1}
    return guard(name, tensors, settings, streams)


GUARDS = (make("a", 0, 2), make("b", 1, 3, ("clip", "t5")), make("c", 2, 1, ("t5", "pooled")))


def slow_triggers(x: Array, guard: FittedGuard, stream: str) -> list[bool]:
    """Equations 2 to 4, token by token; `x [n, width]` are the real tokens."""
    u, c = guard.tensors[f"basis.{stream}"], guard.tensors[f"centre.{stream}"]
    if len(x) < 2:
        return [False] * len(x)
    distances = []
    for token in range(len(x)):
        p = np.delete(x, token, axis=0).mean(0) - c
        distances.append(np.linalg.norm(p - u.T @ (u @ p)) / np.linalg.norm(p))
    return [
        d > (1 + guard.settings["alpha"]) * np.mean(np.delete(distances, token))
        for token, d in enumerate(distances)
    ]


def slow_score(text: Conditioning, row: int, guard: FittedGuard) -> float:
    """Equation 6's measure, on the stream where it is largest."""
    best = 0.0
    for stream in guard.settings["streams"]:
        x = text.states[stream][row][text.masks[stream][row]].numpy()
        scoring = guard.tensors[f"basis.{stream}"][: guard.settings["sense_rank"]]
        changes = []
        for token, triggers in zip(x, slow_triggers(x, guard, stream), strict=True):
            if triggers:
                offset = token - guard.tensors[f"centre.{stream}"]
                kept = offset - scoring.T @ (scoring @ offset)
                cosine = offset @ kept / np.linalg.norm(offset) / np.linalg.norm(kept)
                changes.append(1 - cosine)
        best = max(best, float(np.mean(changes)) if changes else 0.0)
    return best


def slow_act(
    text: Conditioning, row: int, due: list[int], strength: list[float], stream: str
) -> Array:
    """Equation 5 for one row and stream, with the due guards' subspaces joined by QR."""
    x, mask = text.states[stream][row].numpy().copy(), text.masks[stream][row].numpy()
    fitted = [i for i in due if stream in GUARDS[i].settings["streams"]]
    if not fitted:
        return x
    joint = np.concatenate([GUARDS[i].tensors[f"basis.{stream}"] for i in fitted])
    q = np.linalg.qr(joint.T)[0]
    centre = np.mean([GUARDS[i].tensors[f"centre.{stream}"] for i in fitted], axis=0)
    weight = np.zeros(len(x))
    for i in due:
        z = slow_score(text, row, GUARDS[i])
        w = strength[i] / (1 + np.exp(-GUARDS[i].settings["slope"] * (z - 0.2)))
        triggering = (
            slow_triggers(x[mask], GUARDS[i], stream)
            if stream in GUARDS[i].settings["streams"]
            else [False] * mask.sum()
        )
        if len(x) == 1:
            triggering = [True]
        weight[mask] = np.maximum(weight[mask], w * np.array(triggering))
    return x - weight[:, None] * ((x - centre) @ q @ q.T)


def test_scores_are_the_slow_ones() -> None:
    text = prompts(6)
    scores = safree.stack(GUARDS).sense(text)
    for row in range(6):
        for column, member in enumerate(GUARDS):
            expected = slow_score(text, row, member)
            assert float(scores[row, column]) == pytest.approx(expected, abs=2e-6)
    assert scores[:5].amin(0).amax() > 0.0  # the case is not empty
    assert scores[5].tolist() == [0.0, 0.0, 0.0]  # one token: nothing to mask out


def test_due_rows_are_projected_as_in_the_reference_and_the_others_keep_their_bits() -> None:
    text, guards = prompts(6), safree.stack(GUARDS)
    due = torch.zeros(6, 3, dtype=torch.bool)
    due[0] = torch.tensor([True, True, True])
    due[2] = torch.tensor([True, False, False])
    due[3] = torch.tensor([False, True, True])
    due[5, 0] = True
    strength = torch.linspace(0.5, 1.5, 18).view(6, 3)
    acted = guards.act(text, due, torch.zeros(6, 3), strength)
    for row in (0, 2, 3, 5):
        for stream in STREAMS:
            columns = due[row].nonzero()[:, 0].tolist()
            expected = slow_act(text, row, columns, strength[row].tolist(), stream)
            np.testing.assert_allclose(acted.text.states[stream][row], expected, atol=2e-5)
    assert bits_are_kept(text, acted.text, due.any(1))
    assert acted.steps.tolist() == [1, 0, 1, 1, 0, 1] and acted.score.isnan().all()


def test_tokens_that_do_not_trigger_keep_their_bits() -> None:
    text, member = prompts(2), GUARDS[0]
    x = text.states["clip"][0]
    acted = safree.stack([member]).act(
        text, torch.tensor([[True], [False]]), torch.zeros(2, 1), torch.ones(2, 1)
    )
    triggering = slow_triggers(x.numpy(), member, "clip")
    assert 0 < sum(triggering) < len(triggering)
    same = (acted.text.states["clip"][0] == x).all(1)
    assert same.tolist() == [not triggers for triggers in triggering]


def test_full_weight_removes_the_subspace_from_the_triggers() -> None:
    text = prompts(2)
    settings = GUARDS[0].settings | {"slope": 1000.0, "middle": -1.0}
    member = FittedGuard("a", GUARDS[0].tensors, settings)
    acted = safree.stack([member]).act(
        text, torch.tensor([[True], [False]]), torch.zeros(2, 1), torch.ones(2, 1)
    )
    triggering = torch.tensor(slow_triggers(text.states["t5"][0].numpy(), member, "t5"))
    u, c = (torch.tensor(member.tensors[f"{kind}.t5"]) for kind in ("basis", "centre"))
    remaining = (acted.text.states["t5"][0] - c) @ u.T
    assert remaining[triggering].abs().max() < 1e-5 < remaining[~triggering].abs().max()


def test_strength_grows_the_step() -> None:
    text, guards = prompts(2), safree.stack(GUARDS[:1])
    due = torch.tensor([[True], [False]])

    def step(strength: float) -> torch.Tensor:
        acted = guards.act(text, due, torch.zeros(2, 1), torch.full((2, 1), strength))
        return acted.text.states["clip"][0] - text.states["clip"][0]

    torch.testing.assert_close(step(2.0), 2.0 * step(1.0))


def test_in_a_bank_rows_with_and_without_guards_do_not_mix() -> None:
    text, bank = prompts(5), EmbeddingBank([safree.stack(GUARDS)])
    rows = [
        [RowGuard("a", 1e-4, 1.0), RowGuard("b", 1e-4, 1.0)],
        [],
        [RowGuard("c", 5.0, 1.0)],
        [RowGuard("b", 1e-4, 1.0, acts=False)],
        [RowGuard("a", 1e-4, 1.0)],
    ]
    applied = bank.apply(text, rows)
    touched = torch.tensor([True, False, False, False, False])
    assert bits_are_kept(text, applied.text, touched)
    assert not torch.equal(applied.text.states["t5"][0], text.states["t5"][0])
    assert applied.readings[3]["b"].fired and applied.readings[3]["b"].steps == 0
    assert applied.readings[0]["a"].resolved and applied.readings[0]["a"].after is None
    alone = bank.apply(text.select(slice(0, 1)), rows[:1])
    for name, states in alone.text.states.items():
        torch.testing.assert_close(states[0], applied.text.states[name][0], atol=1e-6, rtol=1e-6)


def test_not_a_number_is_invalid_not_silent() -> None:
    text = prompts(3)
    text.states["t5"][0, 2, 3] = torch.nan
    applied = EmbeddingBank([safree.stack(GUARDS)]).apply(text, [[RowGuard("a", 0.1, 1.0)]] * 3)
    assert [row["a"].valid for row in applied.readings] == [False, True, True]


def test_half_precision_states_stay_half_precision() -> None:
    text = prompts(3)
    half = text.with_states({name: state.half() for name, state in text.states.items()})
    acted = safree.stack(GUARDS).act(
        half, torch.ones(3, 3, dtype=torch.bool), torch.zeros(3, 3), torch.ones(3, 3)
    )
    assert all(state.dtype == torch.float16 for state in acted.text.states.values())
