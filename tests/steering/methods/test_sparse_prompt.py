"""Sparse features of prompts against one token at a time, and the states that must not change."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from steering.hidden.rows import RowGuard
from steering.images.conditioning import Conditioning
from steering.images.embedding import EmbeddingBank
from steering.methods import method_named
from steering.methods.fitted import FittedGuard
from tests.steering.methods.random_guards import STREAMS, WIDTHS, bits_are_kept, guard, prompts

Array = NDArray[Any]


def make(
    name: str,
    seed: int,
    count: int,
    streams: tuple[str, ...] = STREAMS,
    *,
    gated: bool = True,
    cut: float = 0.5,
) -> FittedGuard:
    rng = np.random.default_rng(seed)
    tensors = {}
    for stream in streams:
        width = WIDTHS[stream]
        tensors[f"reads.{stream}"] = rng.standard_normal((count, width))
        tensors[f"offsets.{stream}"] = 0.3 * rng.standard_normal(count)
        tensors[f"cuts.{stream}"] = np.full(count, cut)
        tensors[f"writes.{stream}"] = rng.standard_normal((count, width))
        if gated:
            tensors[f"weights.{stream}"] = rng.standard_normal(width)
    return guard(name, tensors, {"bias": 0.1 * seed, "gated": gated}, streams)


GUARDS = (make("a", 0, 2), make("b", 1, 4, ("clip", "t5")), make("c", 2, 3, gated=False))


def stacked(*guards: FittedGuard) -> Any:
    return method_named("sparse-prompt").stacked(guards)


def slow_act(
    text: Conditioning, row: int, due: list[int], strength: list[float], stream: str
) -> Array:
    """Token by token and guard by guard; together no farther than the farthest of them alone."""
    x = text.states[stream][row].numpy().astype("f8")
    for token in range(len(x)):
        if not text.masks[stream][row, token]:
            continue
        changes = [np.zeros(WIDTHS[stream])]
        for i in due:
            fitted = GUARDS[i]
            if stream not in fitted.settings["streams"]:
                continue
            change = np.zeros(WIDTHS[stream])
            names = ("reads", "offsets", "cuts", "writes")
            parts = [fitted.tensors[f"{name}.{stream}"].astype("f8") for name in names]
            for read, offset, cut, write in zip(*parts, strict=True):
                z = read @ x[token] + offset
                change -= strength[i] * (z if z > cut else 0.0) * write
            changes.append(change)
        total, most = np.sum(changes, 0), max(map(np.linalg.norm, changes))
        length = np.linalg.norm(total)
        x[token] += total * (most / length if length > most else 1.0)
    return x


def test_due_rows_move_as_in_the_reference_and_the_others_keep_their_bits() -> None:
    text, guards = prompts(6), stacked(*GUARDS)
    due = torch.zeros(6, 3, dtype=torch.bool)
    due[0] = torch.tensor([True, True, True])
    due[2] = torch.tensor([False, True, False])
    due[4] = torch.tensor([True, False, True])
    due[5, 2] = True
    strength = torch.linspace(0.5, 1.5, 18).view(6, 3)
    acted = guards.act(text, due, torch.zeros(6, 3), strength)
    moved = 0
    for row in (0, 2, 4, 5):
        for stream in STREAMS:
            columns = due[row].nonzero()[:, 0].tolist()
            expected = slow_act(text, row, columns, strength[row].tolist(), stream)
            np.testing.assert_allclose(acted.text.states[stream][row], expected, atol=2e-4)
            moved += int((acted.text.states[stream][row] != text.states[stream][row]).any())
    assert moved > 6
    assert bits_are_kept(text, acted.text, due.any(1))
    assert acted.steps.tolist() == [1, 0, 1, 0, 1, 1] and acted.score.isnan().all()
    padding = ~text.masks["t5"]
    assert torch.equal(acted.text.states["t5"][padding], text.states["t5"][padding])


def test_tokens_without_a_chosen_feature_keep_their_bits() -> None:
    text = prompts(4)
    # an own change of minus zero would turn the sign of a zero
    text.states["t5"][0, 0, 0] = -0.0
    silent = stacked(make("a", 0, 2, cut=1e6))
    everywhere = torch.ones(4, 1, dtype=torch.bool)
    acted = silent.act(text, everywhere, torch.zeros(4, 1), torch.ones(4, 1))
    for name, states in text.states.items():
        after = acted.text.states[name]
        assert torch.equal(after.view(torch.int32), states.view(torch.int32))


def test_two_guards_of_the_same_features_take_them_out_once() -> None:
    text, member = prompts(3), GUARDS[0]
    twin = FittedGuard("twin", member.tensors, member.settings)
    due, limits = torch.ones(3, 2, dtype=torch.bool), torch.zeros(3, 2)
    both = stacked(member, twin).act(text, due, limits, torch.ones(3, 2))
    one = stacked(member).act(text, due[:, :1], limits[:, :1], torch.ones(3, 1))
    for name in STREAMS:
        torch.testing.assert_close(both.text.states[name], one.text.states[name])


def test_in_a_bank_rows_with_and_without_guards_do_not_mix() -> None:
    text, guards = prompts(5), stacked(*GUARDS)
    low = float(guards.sense(text).amin()) - 1.0
    rows = [
        [RowGuard("a", low, 1.0), RowGuard("b", low, 1.0)],
        [],
        [RowGuard("b", 99.0, 1.0)],
        [RowGuard("b", low, 1.0, acts=False)],
        [RowGuard("c", 0.0, 1.0)],
    ]
    bank = EmbeddingBank([guards])
    applied = bank.apply(text, rows)
    assert bits_are_kept(text, applied.text, torch.tensor([True, False, False, False, True]))
    assert applied.readings[3]["b"].fired and applied.readings[3]["b"].steps == 0
    # without a gate a guard reads 1 and acts on every prompt that carries it
    assert applied.readings[4]["c"].score == 1.0
    alone = bank.apply(text.select(torch.tensor([4])), rows[4:])
    for name in STREAMS:
        torch.testing.assert_close(alone.text.states[name][0], applied.text.states[name][4])


@pytest.mark.parametrize(
    ("key", "value", "fault"),
    [
        ("reads.t5", np.ones((2, 9)), "reads and writes must be"),
        ("cuts.t5", -np.ones(2), "cuts must be at least 0"),
        ("offsets.t5", np.ones(3), "as many as reads has"),
        ("writes.t5", np.ones(2), "must have 2 dimensions"),
    ],
)
def test_wrong_tensors_are_refused(key: str, value: Any, fault: str) -> None:
    tensors = {**GUARDS[0].tensors, key: value.astype("f4")}
    with pytest.raises(ValueError, match=f"guard g.*{fault}"):
        stacked(FittedGuard("g", tensors, GUARDS[0].settings))


def test_guards_of_other_widths_are_not_of_one_stack() -> None:
    tensors = {**GUARDS[0].tensors}
    for name in ("reads", "writes"):
        tensors[f"{name}.t5"] = np.ones((2, 9), "f4")
    other = FittedGuard("other", tensors, GUARDS[0].settings)
    with pytest.raises(ValueError, match=r"reads\.t5 are of different widths"):
        stacked(GUARDS[0], other)
