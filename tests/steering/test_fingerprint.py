"""One name for the same weights, whatever dtype they were loaded in; another for any others."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from steering.fingerprint import fingerprint
from tests.steering.tiny import tiny_model


@pytest.fixture
def model() -> Any:
    """Float32 weights that bfloat16 can hold, as a checkpoint of bfloat16 has."""
    return tiny_model().bfloat16().float()


def test_float32_and_bfloat16_copies_agree(model: Any) -> None:
    assert fingerprint(copy.deepcopy(model).bfloat16()) == fingerprint(model)


def test_a_file_of_float32_agrees_with_itself_loaded_in_bfloat16() -> None:
    model = tiny_model()
    rounded = copy.deepcopy(model).bfloat16()
    assert not torch.equal(rounded.lm_head.weight.float(), model.lm_head.weight)
    assert fingerprint(rounded) == fingerprint(model)


def test_it_is_a_sha256_and_the_same_each_time(model: Any) -> None:
    first = fingerprint(model)
    assert len(first) == 64 and int(first, 16) >= 0
    assert fingerprint(model) == first == fingerprint(copy.deepcopy(model))


def test_a_small_change_to_every_weight_shows(model: Any) -> None:
    tuned = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in tuned.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter += 1e-3 * parameter.std().nan_to_num(1.0) * noise
    assert fingerprint(tuned) != fingerprint(model)


@pytest.mark.parametrize("tuned", range(3))
def test_a_change_to_one_matrix_alone_shows(model: Any, tuned: int) -> None:
    other = copy.deepcopy(model)
    matrices = [p for p in other.parameters() if p.ndim == 2]
    with torch.no_grad():
        matrices[tuned * (len(matrices) - 1) // 2].mul_(1.01)
    assert fingerprint(other) != fingerprint(model)


def test_names_and_shapes_count() -> None:
    flat, square = nn.Module(), nn.Module()
    flat.register_parameter("weight", nn.Parameter(torch.zeros(4)))
    square.register_parameter("weight", nn.Parameter(torch.zeros(2, 2)))
    renamed = nn.Module()
    renamed.register_parameter("heavy", nn.Parameter(torch.zeros(4)))
    assert len({fingerprint(m) for m in (flat, square, renamed)}) == 3


def test_reading_it_changes_nothing(model: Any) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fingerprint(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
