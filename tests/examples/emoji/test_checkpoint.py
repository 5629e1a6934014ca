"""A run that resumes from a checkpoint ends as one without a stop."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from examples.emoji import checkpoint


def network() -> nn.Module:
    torch.manual_seed(0)
    # channels last like the real networks: memory in another order than the dimensions
    whole = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3))
    return whole.to(memory_format=torch.channels_last)


def learn(
    model: nn.Module, optimizer: torch.optim.Optimizer, average: checkpoint.Average, steps: range
) -> None:
    for step in steps:
        random = torch.Generator().manual_seed(step)
        batch = torch.randn(4, 3, 8, 8, generator=random).to(memory_format=torch.channels_last)
        loss = (model(batch) - 1).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        average.update(model, step)


@pytest.mark.parametrize("fused", [False, True])
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path: Path, fused: bool) -> None:
    def start() -> tuple[nn.Module, torch.optim.Optimizer, checkpoint.Average]:
        model = network()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=fused)
        return model, optimizer, checkpoint.Average(model, 0.9)

    uninterrupted = start()
    learn(*uninterrupted, range(8))
    first = start()
    learn(*first, range(4))
    checkpoint.save(tmp_path / "state.safetensors", *first[:2], 4, first[2])
    second = start()
    step = checkpoint.resume(tmp_path / "state.safetensors", *second)
    assert step == 4
    learn(*second, range(step, 8))
    for name, value in uninterrupted[0].state_dict().items():
        torch.testing.assert_close(second[0].state_dict()[name], value, atol=1e-6, rtol=1e-5)
    saved = checkpoint.averages(tmp_path / "state.safetensors")
    assert saved.keys() == uninterrupted[2].values.keys()
    for name, value in uninterrupted[2].values.items():
        torch.testing.assert_close(second[2].values[name], value, atol=1e-6, rtol=1e-5)


def test_without_a_checkpoint_a_run_begins_at_the_start(tmp_path: Path) -> None:
    model = network()
    optimizer = torch.optim.AdamW(model.parameters())
    assert checkpoint.resume(tmp_path / "nothing.safetensors", model, optimizer) == 0
