"""The rows of each forward; each row comes back with the bits of its own inputs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from steering.engines.diffusion.forwards import Forwards
from steering.images.conditioning import Conditioning


class SumNetwork:
    """A network whose output is the sum of its inputs, with an error at the sizes `wrong`."""

    def __init__(self, wrong: tuple[int, ...] = ()) -> None:
        self.sizes: list[int] = []
        self._wrong = wrong

    def predict(
        self, latents: Tensor, timesteps: Tensor, text: Conditioning, guidance: Tensor
    ) -> Tensor:
        self.sizes.append(len(latents))
        error = 1.0 if len(latents) in self._wrong else 0.0
        per_row = timesteps + text.states["text"].sum((1, 2)) + guidance + error
        return (latents + per_row[:, None, None, None]).half()


def rows(count: int) -> Any:
    generator = torch.Generator().manual_seed(count)
    text = torch.randn(count, 2, 2, generator=generator)
    return (
        torch.randn(count, 1, 2, 2, generator=generator),
        torch.randn(count, generator=generator),
        Conditioning({"text": text}, {"text": torch.ones(count, 2).bool()}),
        torch.randn(count, generator=generator),
    )


@pytest.mark.parametrize("wrong", [(), (6,)])
@pytest.mark.parametrize("size", [2, 4, None])
def test_rows_come_back_in_order_with_their_own(size: int | None, wrong: tuple[int, ...]) -> None:
    forwards = Forwards(SumNetwork(wrong if size == 4 else ()), size)  # type: ignore[arg-type]
    for count in range(1, 19):
        inputs = rows(count)
        expected = SumNetwork().predict(*inputs).float()
        assert torch.equal(forwards(*inputs), expected)


@pytest.mark.parametrize(
    ("count", "sizes"),
    [
        (1, [4]),
        (2, [4]),
        (4, [4]),
        (5, [6]),
        (6, [6]),
        (7, [4, 4]),
        (8, [4, 4]),
        (10, [6, 4]),
        (11, [4, 4, 4]),
        (14, [6, 4, 4]),
        (16, [4, 4, 4, 4]),
    ],
)
def test_forwards_are_filled_up_as_little_as_possible(count: int, sizes: list[int]) -> None:
    network = SumNetwork()
    forwards = Forwards(network, 4)  # type: ignore[arg-type]
    forwards(*rows(6))
    # both sizes were tried, then the larger one was taken
    assert network.sizes == [4, 4, 6, 6]
    network.sizes.clear()
    forwards(*rows(count))
    assert network.sizes == sizes


def test_a_larger_forward_with_other_bits_is_not_used() -> None:
    network = SumNetwork(wrong=(6,))
    forwards = Forwards(network, 4)  # type: ignore[arg-type]
    forwards(*rows(6))
    network.sizes.clear()
    forwards(*rows(6))
    forwards(*rows(10))
    assert network.sizes == [4, 4, 4, 4, 4]


def test_without_a_size_all_rows_run_at_once() -> None:
    network = SumNetwork()
    Forwards(network, None)(*rows(7))  # type: ignore[arg-type]
    assert network.sizes == [7]


class RecordingSeam:
    """Records the rows of each forward, and the end."""

    def __init__(self) -> None:
        self.events: list[list[int]] = []

    def enter(self, rows: Tensor) -> None:
        self.events.append(rows.tolist())

    def leave(self) -> None:
        self.events.append([])


def test_seams_are_told_which_rows_a_forward_holds() -> None:
    seam = RecordingSeam()
    Forwards(SumNetwork((6,)), 4, [seam])(*rows(6))  # type: ignore[arg-type, list-item]
    # the first three find out whether six rows may go together: they may not
    tried = [[0, 1, 2, 3], [4, 5, 5, 5], [0, 1, 2, 3, 4, 5]]
    assert seam.events == [*tried, [0, 1, 2, 3], [4, 5, 5, 5], []]


def test_seams_are_told_of_the_end_where_the_network_fails() -> None:
    seam = RecordingSeam()
    inputs = rows(2)
    with pytest.raises(IndexError):
        Forwards(SumNetwork(), 4, [seam])(inputs[0], inputs[1], inputs[2], torch.zeros(0))  # type: ignore[arg-type, list-item]
    assert seam.events[-1] == []
