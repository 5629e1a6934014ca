from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from classifiers.heads import Heads, fresh
from steering.conditioning import Conditioning
from steering.methods import cgce
from steering.methods.cgce import CgceScreen
from steering.methods.embedding import EmbeddingGuard
from tests.steering.methods.stand import STREAMS, TOKENS, WIDTHS, bits_are_kept, guard, prompts

SETTINGS: dict[str, Any] = {
    "rate": 0.05,
    "target": 0.4,
    "steps": 150,
    "pull": 0.0,
    "share": 0.0,
    "strength": 1.0,
    "threshold": 0.5,
}


def fitted(
    name: str, seed: int, streams: tuple[str, ...] = STREAMS, **changed: Any
) -> EmbeddingGuard:
    rng = np.random.default_rng(seed)
    tensors = {}
    for stream in streams:
        width, tokens = WIDTHS[stream], TOKENS[stream]
        heads = fresh(2, width, queries=2, hidden=6, seed=seed)
        tensors |= {f"{part}.{stream}": value.numpy() for part, value in heads.parts().items()}
        tensors[f"anchors.{stream}"] = rng.standard_normal((3, tokens, width))
    return guard(name, tensors, SETTINGS | changed, streams)


def heads_of(own: EmbeddingGuard, stream: str) -> Heads:
    names = ("queries", "hidden", "hidden_bias", "out", "out_bias")
    return Heads(**{name: torch.tensor(own.tensors[f"{name}.{stream}"]) for name in names})


def due_of(screen: CgceScreen, text: Conditioning) -> Tensor:
    return screen.sense(text) > 0.5


def act(screen: CgceScreen, text: Conditioning, due: Tensor) -> Any:
    return screen.act(text, due, torch.full(due.shape, 0.5), torch.ones(due.shape))


def test_the_score_is_the_largest_of_all_members_and_streams() -> None:
    guards = [fitted("a", 1), fitted("b", 2, ("t5",))]
    text = prompts(6)
    scores = cgce.stack(guards).sense(text)
    for column, own in enumerate(guards):
        said = [heads_of(own, stream)(text.states[stream]).sigmoid() for stream in own.streams]
        torch.testing.assert_close(scores[:, column], torch.cat(said, 1).amax(1))


def test_a_row_that_is_not_finite_has_no_score() -> None:
    text = prompts(3).clone()
    text.states["t5"][1, 0, 0] = torch.nan
    assert cgce.stack([fitted("a", 1)]).sense(text).isnan()[:, 0].tolist() == [False, True, False]


def test_refinement_brings_due_guards_under_their_targets() -> None:
    screen = cgce.stack([fitted("a", 1), fitted("b", 2)])
    text = prompts(12)
    due = due_of(screen, text)
    acted = act(screen, text, due)
    assert due.sum() > 10
    # two random heads may have no state that both call safe
    assert (acted.score[due] <= 0.4 + 1e-5).float().mean() > 0.9
    assert (acted.score < screen.sense(text))[due].all()
    assert (acted.steps[due.any(1)] > 0).all()


def test_rows_that_are_not_due_keep_their_bits() -> None:
    screen = cgce.stack([fitted("a", 1)])
    text = prompts(8)
    due = torch.zeros(8, 1, dtype=torch.bool)
    due[int(screen.sense(text)[:, 0].argmax())] = True
    acted = act(screen, text, due)
    assert bits_are_kept(text, acted.text, due.any(1))
    assert not torch.equal(acted.text.states["t5"], text.states["t5"])
    assert acted.steps[~due[:, 0]].sum() == 0


def test_a_row_is_refined_alike_alone_and_in_company() -> None:
    screen = cgce.stack([fitted("a", 1, steps=5), fitted("b", 2, steps=5)])
    text = prompts(10)
    due = due_of(screen, text)
    together = act(screen, text, due)
    for row in due.any(1).nonzero()[:, 0].tolist():
        alone = act(screen, text.select(slice(row, row + 1)), due[row : row + 1])
        assert alone.steps.tolist() == together.steps[row : row + 1].tolist()
        for stream in STREAMS:
            torch.testing.assert_close(
                alone.text.states[stream][0],
                together.text.states[stream][row],
                atol=1e-3,
                rtol=1e-3,
            )


def test_one_step_is_the_equation() -> None:
    own = fitted("a", 1, ("t5",), steps=1)
    text = prompts(1, seed=3)
    states = text.states["t5"].clone().requires_grad_()
    loss = torch.nn.functional.softplus(heads_of(own, "t5")(states)).sum()
    (slope,) = torch.autograd.grad(loss, states)
    expected = states - 0.05 * states.norm() * slope / slope.norm()
    due = torch.ones(1, 1, dtype=torch.bool)
    screen = cgce.stack([fitted("a", 1, ("t5",), steps=1, target=0.0)])
    torch.testing.assert_close(act(screen, text, due).text.states["t5"], expected.detach())


def test_the_steps_are_bounded_and_what_is_left_is_told() -> None:
    screen = cgce.stack([fitted("a", 1, steps=2, rate=1e-5, target=0.0)])
    text = prompts(4)
    due = torch.ones(4, 1, dtype=torch.bool)
    acted = act(screen, text, due)
    assert acted.steps.tolist() == [2] * 4
    assert (acted.score > 0).all()


def test_tokens_with_little_of_the_gradient_stay() -> None:
    screen = cgce.stack([fitted("a", 1, ("t5",), share=1.0, steps=1, target=0.0)])
    text = prompts(1)
    changed = act(screen, text, torch.ones(1, 1, dtype=torch.bool)).text.states["t5"]
    moved = (changed != text.states["t5"]).any(2)
    assert moved.sum() == 1


def test_the_pull_leads_to_the_nearest_anchor() -> None:
    own = fitted("a", 1, ("t5",), pull=1.0, steps=1, target=0.0)
    text = prompts(1)
    anchors = torch.tensor(own.tensors["anchors.t5"])
    gaps = (anchors - text.states["t5"]).flatten(1).norm(dim=1)
    changed = act(cgce.stack([own]), text, torch.ones(1, 1, dtype=torch.bool)).text.states["t5"]
    torch.testing.assert_close(changed[0], anchors[int(gaps.argmin())])


def test_it_refines_under_inference_mode_too() -> None:
    screen = cgce.stack([fitted("a", 1)])
    with torch.inference_mode():
        text = prompts(6).clone()
        due = due_of(screen, text)
        assert due.any()
        acted = act(screen, text, due)
    assert (acted.score[due] <= 0.4 + 1e-5).all()


def test_strength_scales_the_step() -> None:
    screen = cgce.stack([fitted("a", 1, steps=1, target=0.0)])
    text, due = prompts(1), torch.ones(1, 1, dtype=torch.bool)
    half = screen.act(text, due, 0.5 * torch.ones(1, 1), 0.5 * torch.ones(1, 1))
    for stream in STREAMS:
        whole = act(screen, text, due).text.states[stream] - text.states[stream]
        torch.testing.assert_close(
            2 * (half.text.states[stream] - text.states[stream]), whole, atol=1e-5, rtol=1e-4
        )


@pytest.mark.parametrize("missing", ["queries.t5", "anchors.pooled"])
def test_what_is_missing_is_named(missing: str) -> None:
    whole = fitted("a", 1, pull=0.1)
    tensors = {name: value for name, value in whole.tensors.items() if name != missing}
    with pytest.raises(ValueError, match=missing.split(".")[0]):
        cgce.stack([EmbeddingGuard("a", tensors, whole.settings)])


def test_guards_with_and_without_anchors_are_stacked() -> None:
    plain = fitted("plain", 1)
    bare = EmbeddingGuard(
        "bare",
        {name: value for name, value in plain.tensors.items() if "anchors" not in name},
        plain.settings,
    )
    text, due = prompts(4), torch.ones(4, 1, dtype=torch.bool)
    expected = act(cgce.stack([plain]), text, due)
    both = act(cgce.stack([fitted("other", 2), bare]), text, torch.tensor([[False, True]] * 4))
    assert both.steps.tolist() == expected.steps.tolist()
    for stream in STREAMS:
        torch.testing.assert_close(
            both.text.states[stream], expected.text.states[stream], atol=1e-3, rtol=1e-3
        )


def test_logits_are_the_scores_and_have_a_slope() -> None:
    screen = cgce.stack([fitted("a", 1), fitted("b", 2, ("t5",))])
    text = prompts(5)
    states = {name: state.requires_grad_() for name, state in text.states.items()}
    logits = screen.logits(text.with_states(states))
    torch.testing.assert_close(logits.sigmoid().detach(), screen.sense(prompts(5)))
    slopes = torch.autograd.grad(logits.sum(), list(states.values()))
    assert all(float(slope.abs().max()) > 0 for slope in slopes)
