"""Overlays with a gate and without one, from artifacts."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from steering.images.conditioning import Conditioning
from steering.methods import gated_overlays
from steering.methods.fitted import FittedGuard

WIDTH = 12


def guard(name: str = "u", *, gated: bool = True, **changed: Any) -> FittedGuard:
    tensors = {
        "reads.0": torch.ones(2, WIDTH).numpy(),
        "writes.block.to_k": torch.ones(2, 5).numpy(),
        "writes.block.to_v": torch.ones(2, 6).numpy(),
        "weights.text": torch.eye(1, 4)[0].numpy(),
    }
    settings = {"groups": {"0": ["block.to_k", "block.to_v"]}, "streams": ["text"]}
    settings |= {"gated": gated, "bias": 0.25} | changed
    return FittedGuard(name, tensors, settings)


def test_the_score_is_that_of_the_gate_or_one_without_a_gate() -> None:
    guards = gated_overlays.stack([guard("g"), guard("o", gated=False)])
    states = torch.zeros(3, 2, 4)
    states[0, :, 0], states[2, 1, 3] = 2.0, torch.nan
    text = Conditioning({"text": states}, {"text": torch.ones(3, 2).bool()})
    scores = guards.sense(text)
    assert scores[:2].tolist() == [[2.25, 1.0], [0.25, 1.0]] and scores[2].isnan().all()
    acted = guards.act(text, scores > 0, scores, scores)
    assert acted.text is text and not acted.steps.any() and acted.score.isnan().all()
    assert acted.scale is None
    assert [overlay.groups for overlay in guards.overlays] == [
        {"0": ("block.to_k", "block.to_v")}
    ] * 2


def test_an_ungated_guard_needs_no_gate_in_its_artifact() -> None:
    ungated = guard(gated=False)
    bare = {name: values for name, values in ungated.tensors.items() if name != "weights.text"}
    guards = gated_overlays.stack([FittedGuard("u", bare, ungated.settings)])
    text = Conditioning({"text": torch.zeros(1, 2, 4)}, {"text": torch.ones(1, 2).bool()})
    assert guards.sense(text).tolist() == [[1.0]]


@pytest.mark.parametrize("groups", [None, {}, ["block.to_k"], {"0": "block.to_k"}, {"0": []}])
def test_invalid_groups_are_named(groups: Any) -> None:
    with pytest.raises(ValueError, match="guard u: groups must have a list of names for each"):
        gated_overlays.stack([guard(groups=groups)])


def test_a_layer_without_a_tensor_is_named() -> None:
    with pytest.raises(ValueError, match=r"guard u: has no tensor 'writes\.block\.to_q'"):
        gated_overlays.stack([guard(groups={"0": ["block.to_q"]})])


def test_guards_on_different_layers_can_be_stacked() -> None:
    # the overlays are stacked by the seam, not by the method
    assert (
        len(gated_overlays.stack([guard("a"), guard("b", groups={"0": ["block.to_k"]})]).overlays)
        == 2
    )


def test_the_strength_follows_the_score_from_the_threshold_up() -> None:
    """γ = (score - threshold) / (full - threshold), at most 1; guards without it act wholly."""
    guards = gated_overlays.stack([guard("t", full_score=3.25), guard("w")])
    states = torch.zeros(4, 1, 4)
    states[:, 0, 0] = torch.tensor([1.5, 2.0, 3.0, 9.0])  # scores of 1.75, 2.25, 3.25, 9.25
    text = Conditioning({"text": states}, {"text": torch.ones(4, 1).bool()})
    threshold = torch.full((4, 2), 1.25)
    acted = guards.act(text, torch.ones(4, 2).bool(), threshold, torch.ones(4, 2))
    assert acted.scale is not None and acted.text is text
    assert acted.scale.tolist() == [[0.25, 1.0], [0.5, 1.0], [1.0, 1.0], [1.0, 1.0]]
    # a request whose threshold is over that score: whatever fires acts wholly
    higher = guards.act(text, torch.ones(4, 2).bool(), threshold + 3.0, torch.ones(4, 2))
    assert higher.scale is not None and higher.scale[3].tolist() == [1.0, 1.0]


def test_a_score_to_follow_needs_a_gate() -> None:
    with pytest.raises(ValueError, match="guard u: has a full_score, and no gate whose score it"):
        gated_overlays.stack([guard(gated=False, full_score=1.0)])
