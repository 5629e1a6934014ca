"""How far the statistics of a row's guards exceed their thresholds, with the gradient."""

from __future__ import annotations

import numpy as np
import torch

from steering.engines.transformers.whole_sequences import WholeSequences
from steering.hidden.rows import RowGuard
from steering.methods.steer import SteerGuard, bank_of


def _guard(name: str, gate: float, pool: int) -> SteerGuard:
    return SteerGuard(
        name=name,
        sense_layers=(0,),
        gates=torch.tensor([[gate, 0.0]]),
        act_layers=(0,),
        directions=torch.ones(1, 1, 2),
        pool=pool,
    )


BANK = bank_of([_guard("one", 1.0, 1), _guard("two", -1.0, 2)])
GUARDS = [RowGuard("one", 2.5, 1.0), RowGuard("two", -4.0, 1.0, recheck=-5.0)]


def test_the_excess_is_the_statistic_less_the_lowest_threshold_and_has_a_gradient() -> None:
    # the first token is the sink; the last one is generated, which only the second guard reads
    states = torch.tensor([[[9.0, 0.0], [1.0, 0.0], [3.0, 0.0], [2.0, 0.0], [1.5, 0.0]]])
    states.requires_grad_()
    table = WholeSequences(BANK, GUARDS, np.ones((1, 5), bool), 4)
    table.sense(0, states)
    excess = table.excess([0])
    # missing tokens of the pool count as 0, and no score of the second guard is above that
    assert excess.tolist() == [[0.5, 5.0]]
    (gradient,) = torch.autograd.grad(excess[0, 0], states)
    assert gradient[0, :, 0].tolist() == [0.0, 0.0, 1.0, 0.0, 0.0]


def test_slots_that_nobody_uses_exceed_nothing() -> None:
    table = WholeSequences(BANK, GUARDS[:1], np.ones((2, 3), bool), 3)
    table.sense(0, torch.zeros(2, 3, 2))
    assert table.excess([0, 1]).tolist() == [[-2.5], [-2.5]]
