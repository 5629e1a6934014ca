from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from classifiers.heads import Heads, fresh
from steering.images.conditioning import Conditioning
from steering.images.embedding import Refinement
from steering.methods import cgce
from steering.methods.cgce import CgceGuards
from steering.methods.fitted import FittedGuard
from tests.steering.methods.random_guards import (
    STREAMS,
    WIDTHS,
    basis,
    bits_are_kept,
    guard,
    prompts,
)

SETTINGS: dict[str, Any] = {
    "rate": 0.05,
    "target": -0.4,
    "steps": 150,
    "pull": 0.0,
    "share": 0.0,
    "confine": False,
    "strength": 1.0,
    "threshold": 0.0,
}
RANK = {"clip": 2, "t5": 3, "pooled": 1}


def fitted(name: str, seed: int, streams: tuple[str, ...] = STREAMS, **changed: Any) -> FittedGuard:
    rng = np.random.default_rng(seed)
    tensors = {}
    for stream in streams:
        width = WIDTHS[stream]
        heads = fresh(2, width, queries=2, hidden=6, seed=seed)
        tensors |= {f"{part}.{stream}": value.numpy() for part, value in heads.parts().items()}
        tensors[f"basis.{stream}"] = basis(RANK[stream], width, rng)
        tensors[f"anchors.{stream}"] = rng.standard_normal((9, width))
    return guard(name, tensors, SETTINGS | changed, streams)


def heads_of(fitted_guard: FittedGuard, stream: str) -> Heads:
    names = ("queries", "hidden", "hidden_bias", "out", "out_bias")
    return Heads(**{name: torch.tensor(fitted_guard.tensors[f"{name}.{stream}"]) for name in names})


def due_of(guards: CgceGuards, text: Conditioning) -> Tensor:
    return guards.sense(text) > 0.0


def act(guards: CgceGuards, text: Conditioning, due: Tensor) -> Refinement:
    return guards.act(text, due, torch.zeros(due.shape), torch.ones(due.shape))


def moves(text: Conditioning, acted: Refinement, stream: str) -> Tensor:
    return acted.text.states[stream] - text.states[stream]


def test_the_score_is_the_mean_of_a_streams_members_and_the_largest_of_all_streams() -> None:
    guards = [fitted("a", 1), fitted("b", 2, ("t5",))]
    text = prompts(6)
    scores = cgce.stack(guards).sense(text)
    for column, member in enumerate(guards):
        means = [heads_of(member, name)(text.states[name]).mean(1) for name in member.streams]
        torch.testing.assert_close(scores[:, column], torch.stack(means, 1).amax(1))


def test_the_score_is_the_same_with_a_gradient() -> None:
    guards, text = cgce.stack([fitted("a", 1), fitted("b", 2, ("t5",))]), prompts(6)
    states = {name: state.clone().requires_grad_() for name, state in text.states.items()}
    scores = guards.sense(text.with_states(states))
    torch.testing.assert_close(scores.detach(), guards.sense(text))
    slopes = torch.autograd.grad(scores[0].sum(), list(states.values()))
    assert sum(float(slope[0].norm()) for slope in slopes) > 0
    assert all(slope[1:].norm() == 0 for slope in slopes)


def test_a_row_that_is_not_finite_has_no_score() -> None:
    text = prompts(3).clone()
    text.states["t5"][1, 0, 0] = torch.nan
    assert cgce.stack([fitted("a", 1)]).sense(text).isnan()[:, 0].tolist() == [False, True, False]


def test_refinement_brings_due_guards_under_their_targets() -> None:
    guards = cgce.stack([fitted("a", 1), fitted("b", 2)])
    text = prompts(12)
    due = due_of(guards, text)
    acted = act(guards, text, due)
    assert due.sum() > 10
    # two random heads may have no state that is safe for both
    assert (acted.score[due] <= -0.4 + 1e-4).float().mean() > 0.9
    assert (acted.score < guards.sense(text))[due].all()
    assert (acted.steps[due.any(1)] > 0).all()
    assert acted.score[~due.any(1)].isnan().all()


def test_rows_that_are_not_due_keep_their_bits() -> None:
    guards = cgce.stack([fitted("a", 1)])
    text = prompts(8)
    due = torch.zeros(8, 1, dtype=torch.bool)
    due[int(guards.sense(text)[:, 0].argmax())] = True
    acted = act(guards, text, due)
    assert bits_are_kept(text, acted.text, due.any(1))
    assert not torch.equal(acted.text.states["t5"], text.states["t5"])
    assert acted.steps[~due[:, 0]].sum() == 0


def test_a_row_is_refined_alike_alone_and_in_a_batch() -> None:
    guards = cgce.stack([fitted("a", 1, steps=5), fitted("b", 2, steps=5)])
    text = prompts(10)
    due = due_of(guards, text)
    together = act(guards, text, due)
    for row in due.any(1).nonzero()[:, 0].tolist():
        alone = act(guards, text.select(slice(row, row + 1)), due[row : row + 1])
        assert alone.steps.tolist() == together.steps[row : row + 1].tolist()
        for stream in STREAMS:
            torch.testing.assert_close(
                alone.text.states[stream][0],
                together.text.states[stream][row],
                atol=1e-3,
                rtol=1e-3,
            )


def test_one_step_is_the_equation() -> None:
    single = fitted("a", 1, ("t5",), steps=1)
    text = prompts(1, seed=3)
    states = text.states["t5"].clone().requires_grad_()
    loss = torch.nn.functional.softplus(heads_of(single, "t5")(states)).sum()
    (slope,) = torch.autograd.grad(loss, states)
    expected = states - 0.05 * states.norm() * slope / slope.norm()
    due = torch.ones(1, 1, dtype=torch.bool)
    guards = cgce.stack([fitted("a", 1, ("t5",), steps=1, target=-99.0)])
    torch.testing.assert_close(act(guards, text, due).text.states["t5"], expected.detach())


def test_a_confined_step_is_the_projected_slope_of_the_joint_directions() -> None:
    guards = [
        fitted(name, seed, ("t5",), steps=1, target=-99.0, confine=True)
        for name, seed in (("a", 1), ("b", 2))
    ]
    text = prompts(1, seed=3)
    states = text.states["t5"].clone().requires_grad_()
    loss = sum(
        torch.nn.functional.softplus(heads_of(member, "t5")(states)).sum() for member in guards
    )
    (slope,) = torch.autograd.grad(loss, states)  # type: ignore[arg-type]
    rows = np.concatenate([member.tensors["basis.t5"] for member in guards])
    onto = torch.tensor(rows.T @ np.linalg.pinv(rows @ rows.T, rcond=0.1) @ rows)
    inside = slope @ onto
    expected = 0.05 * states.detach().norm() * inside / inside.norm()
    moved = moves(text, act(cgce.stack(guards), text, torch.ones(1, 2, dtype=torch.bool)), "t5")
    torch.testing.assert_close(-moved, expected, atol=1e-4, rtol=1e-3)


def test_a_guard_that_is_not_due_adds_neither_gradient_nor_directions() -> None:
    due, other = fitted("a", 1, confine=True, pull=0.2), fitted("b", 2, confine=True, pull=0.9)
    text = prompts(3)
    alone = act(cgce.stack([due]), text, torch.ones(3, 1, dtype=torch.bool))
    together = act(cgce.stack([other, due]), text, torch.tensor([[False, True]] * 3))
    assert alone.steps.tolist() == together.steps.tolist()
    for stream in STREAMS:
        torch.testing.assert_close(
            together.text.states[stream], alone.text.states[stream], atol=1e-3, rtol=1e-3
        )


def test_rows_that_are_done_keep_their_bits_while_others_go_on() -> None:
    guards = cgce.stack([fitted("a", 1)])
    text = prompts(12)
    due = due_of(guards, text)
    steps = act(guards, text, due).steps
    first, last = int(steps[due[:, 0]].min()), int(steps.max())
    assert first < last
    short = act(cgce.stack([fitted("a", 1, steps=first)]), text, due)
    done = steps == first
    for stream in STREAMS:
        whole = act(guards, text, due).text.states[stream]
        assert torch.equal(whole[done], short.text.states[stream][done])


def test_the_steps_are_bounded_and_the_remaining_score_is_reported() -> None:
    guards = cgce.stack([fitted("a", 1, steps=2, rate=1e-5, target=-99.0)])
    text = prompts(4)
    due = torch.ones(4, 1, dtype=torch.bool)
    acted = act(guards, text, due)
    assert acted.steps.tolist() == [2] * 4
    torch.testing.assert_close(acted.score, guards.sense(text), atol=1e-2, rtol=1e-2)


def test_tokens_with_little_of_the_gradient_stay() -> None:
    guards = cgce.stack([fitted("a", 1, ("t5",), share=1.0, steps=1, target=-99.0, pull=0.5)])
    text = prompts(1)
    changed = act(guards, text, torch.ones(1, 1, dtype=torch.bool)).text.states["t5"]
    moved = (changed != text.states["t5"]).any(2)
    assert moved.sum() == 1


def test_the_pull_leads_to_the_nearest_safe_token_within_the_directions() -> None:
    pulling = fitted("a", 1, ("t5",), pull=1.0, rate=1e-9, steps=1, target=-99.0)
    text = prompts(2)
    changed = act(cgce.stack([pulling]), text, torch.ones(2, 1, dtype=torch.bool)).text.states["t5"]
    u, anchors = (torch.tensor(pulling.tensors[f"{kind}.t5"]) for kind in ("basis", "anchors"))
    outside = torch.eye(WIDTHS["t5"]) - u.T @ u
    for before, after in zip(text.states["t5"].flatten(0, 1), changed.flatten(0, 1), strict=True):
        nearest = anchors[int(((anchors - before) @ outside).norm(dim=1).argmin())]
        torch.testing.assert_close(after @ u.T, nearest @ u.T, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(after @ outside, before @ outside, atol=1e-4, rtol=1e-4)


def test_a_share_of_the_pull_is_a_share_of_the_way() -> None:
    text, due = prompts(2), torch.ones(2, 1, dtype=torch.bool)
    whole, part = (
        moves(
            text,
            act(cgce.stack([fitted("a", 1, pull=p, rate=1e-9, steps=1, target=-99.0)]), text, due),
            "t5",
        )
        for p in (1.0, 0.25)
    )
    torch.testing.assert_close(part, 0.25 * whole, atol=1e-4, rtol=1e-3)


def test_the_pull_fades() -> None:
    text, due = prompts(1), torch.ones(1, 1, dtype=torch.bool)

    def moved(pull: float, steps: int) -> Tensor:
        pulling = fitted("a", 1, pull=pull, rate=1e-9, steps=steps, target=-99.0)
        return moves(text, act(cgce.stack([pulling]), text, due), "t5")

    remaining = (1 - 0.5) * (1 - 0.5 * 0.8) * (1 - 0.5 * 0.8**2)
    torch.testing.assert_close(moved(0.5, 3), (1 - remaining) * moved(1.0, 1), atol=1e-4, rtol=1e-3)


def test_a_differentiable_descent_gives_the_same_states() -> None:
    guards = cgce.stack([fitted("a", 1, confine=True, pull=0.2, steps=3, target=-99.0)])
    text, due = prompts(2), torch.ones(2, 1, dtype=torch.bool)
    states = {name: state.clone().requires_grad_() for name, state in text.states.items()}
    after, steps = guards.descend(states, due, torch.ones(2, 1), differentiable=True)
    acted = act(guards, text, due)
    assert steps.tolist() == [3, 3]
    for stream in STREAMS:
        torch.testing.assert_close(after[stream].detach(), acted.text.states[stream])
    (slope,) = torch.autograd.grad(after["t5"][0].sum(), [states["t5"]])
    assert slope[0].norm() > 0 and slope[1].norm() == 0


def test_it_refines_under_inference_mode_too() -> None:
    guards = cgce.stack([fitted("a", 1)])
    with torch.inference_mode():
        text = prompts(6).clone()
        due = due_of(guards, text)
        assert due.any()
        acted = act(guards, text, due)
    assert (acted.score[due] <= -0.4 + 1e-4).all()


@pytest.mark.parametrize("confine", [False, True])
def test_strength_scales_the_step(confine: bool) -> None:
    guards = cgce.stack([fitted("a", 1, steps=1, target=-99.0, confine=confine)])
    text, due = prompts(1), torch.ones(1, 1, dtype=torch.bool)
    half = guards.act(text, due, torch.zeros(1, 1), 0.5 * torch.ones(1, 1))
    for stream in STREAMS:
        whole = moves(text, act(guards, text, due), stream)
        torch.testing.assert_close(2 * moves(text, half, stream), whole, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("missing", ["queries.t5", "anchors.pooled", "basis.clip"])
def test_a_missing_tensor_is_named(missing: str) -> None:
    whole = fitted("a", 1, pull=0.1)
    tensors = {name: value for name, value in whole.tensors.items() if name != missing}
    with pytest.raises(ValueError, match=missing):
        cgce.stack([FittedGuard("a", tensors, whole.settings)])
