"""From artifacts to stacked guards: every method is registered, and every fault is named."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest

from steering.methods import METHODS
from steering.methods.fitted import FittedGuard
from steering.methods.safe_guidance import PRESETS
from tests.steering.methods import (
    test_cgce,
    test_gated_overlays,
    test_nearest,
    test_safe_guidance,
    test_safree,
    test_sparse_prompt,
)

SOUND = {
    "cgce": test_cgce.fitted("c", 0),
    "nearest": test_nearest.GUARDS[0],
    "negative-prompt": test_safe_guidance.make("n", 0, {}, gated=True),
    "safe-guidance": test_safe_guidance.make("s", 0, asdict(PRESETS["strong"])),
    "safree": test_safree.GUARDS[0],
    "sparse-prompt": test_sparse_prompt.GUARDS[0],
    "uce": test_gated_overlays.guard(),
}


@pytest.mark.parametrize("method", SOUND)
def test_sound_guards_are_stacked_in_their_order(method: str) -> None:
    sound = SOUND[method]
    other = FittedGuard("other", sound.tensors, sound.settings)
    assert list(METHODS[method].stacked([sound, other], "cpu").names) == [sound.name, "other"]


def without(values: Any, key: str) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name != key}


@pytest.mark.parametrize(
    ("method", "key"),
    [
        ("cgce", "hidden.clip"),
        ("nearest", "anchors.t5"),
        ("nearest", "weights.clip"),
        ("negative-prompt", "concept.pooled"),
        ("negative-prompt", "weights.clip"),
        ("safe-guidance", "mask.t5"),
        ("safree", "basis.clip"),
        ("safree", "centre.t5"),
        ("sparse-prompt", "cuts.t5"),
        ("uce", "reads.0"),
        ("uce", "weights.text"),
    ],
)
def test_a_missing_tensor_is_named(method: str, key: str) -> None:
    sound = SOUND[method]
    with pytest.raises(ValueError, match=f"has no tensor '{key}'"):
        METHODS[method].stacked(
            [FittedGuard("g", without(sound.tensors, key), sound.settings)], "cpu"
        )


@pytest.mark.parametrize(
    ("method", "key"),
    [
        ("cgce", "confine"),
        ("cgce", "target"),
        ("nearest", "bias"),
        ("negative-prompt", "gated"),
        ("safe-guidance", "warmup"),
        ("safree", "sense_rank"),
        ("safree", "streams"),
        ("sparse-prompt", "gated"),
        ("uce", "groups"),
        ("uce", "bias"),
    ],
)
def test_a_missing_setting_is_named(method: str, key: str) -> None:
    sound = SOUND[method]
    with pytest.raises(ValueError, match=f"has no setting '{key}'"):
        METHODS[method].stacked(
            [FittedGuard("g", sound.tensors, without(sound.settings, key))], "cpu"
        )


@pytest.mark.parametrize(
    ("method", "key", "value", "fault"),
    [
        ("safree", "alpha", float("nan"), "alpha must be a finite number"),
        ("safree", "slope", "steep", "slope must be a finite number"),
        ("nearest", "streams", [], "streams must be a list of names"),
        ("cgce", "confine", 0, "confine must be true or false"),
        ("negative-prompt", "gated", 1, "gated must be true or false"),
    ],
)
def test_an_impossible_setting_is_named(method: str, key: str, value: Any, fault: str) -> None:
    sound = SOUND[method]
    broken = FittedGuard("g", sound.tensors, dict(sound.settings) | {key: value})
    with pytest.raises(ValueError, match=fault):
        METHODS[method].stacked([broken], "cpu")


def test_guards_of_different_widths_cannot_be_stacked() -> None:
    sound = SOUND["safree"]
    narrow = {key: values[..., :-1] for key, values in sound.tensors.items()}
    with pytest.raises(ValueError, match="of different widths"):
        METHODS["safree"].stacked([sound, FittedGuard("g", narrow, sound.settings)], "cpu")


def test_concepts_of_different_lengths_cannot_be_stacked() -> None:
    sound = SOUND["negative-prompt"]
    short = dict(sound.tensors) | {"concept.t5": sound.tensors["concept.t5"][:-1]}
    with pytest.raises(ValueError, match=r"concept\.t5 and mask\.t5 must be of one shape"):
        METHODS["negative-prompt"].stacked([sound, FittedGuard("g", short, sound.settings)], "cpu")
