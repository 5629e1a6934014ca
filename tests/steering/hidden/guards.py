"""Random guards of the hidden seam, of one method or of two, with which sums are exact."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor

from steering.hidden.bank import HiddenBank
from steering.hidden.rows import RowGuard
from steering.methods.fitted import FittedGuard
from steering.methods.steer import SteerGuard, SteerGuards
from tests.strangers.directional_ablation import METHOD as ABLATION

WIDTH = 5


@dataclass(frozen=True)
class Ablation:
    """A guard of the directional ablation along one coordinate axis, so that products are exact."""

    name: str
    sense_layers: tuple[int, ...]
    act_layers: tuple[int, ...]
    steps: int
    axis: int
    sign: float
    pool: int = 1
    rest: None = None

    @property
    def direction(self) -> Tensor:
        direction = torch.zeros(WIDTH)
        direction[self.axis] = self.sign
        return direction

    @property
    def gates(self) -> Tensor:
        """`[sense layers, width]`, as of a `SteerGuard`."""
        return self.direction.expand(len(self.sense_layers), -1)

    @property
    def fitted(self) -> FittedGuard:
        settings = {
            "sense_layers": [*self.sense_layers],
            "act_layers": [*self.act_layers],
            "steps": self.steps,
        }
        # the method scales it to unit length
        return FittedGuard(self.name, {"direction": 4.0 * self.direction.numpy()}, settings)


AnyGuard = SteerGuard | Ablation


def bank_of_all(guards: Sequence[AnyGuard]) -> HiddenBank:
    """A bank with one stack for each method, in the order in which the methods come first."""
    stacks = {}
    for kind in dict.fromkeys(map(type, guards)):
        alike = [guard for guard in guards if isinstance(guard, kind)]
        if kind is SteerGuard:
            stacks[kind] = SteerGuards(alike)
        else:
            stacks[kind] = ABLATION.stacked([guard.fitted for guard in alike])
    return HiddenBank([*stacks.values()])


def whole(generator: torch.Generator, *shape: int, limit: int = 3) -> Tensor:
    """Small whole numbers: sums are exact. Zeros are negative, so that adding 0 shows."""
    values = torch.randint(-limit, limit + 1, shape, generator=generator).float()
    return torch.where(values == 0, -0.0, values)


def same_bits(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.contiguous().view(torch.int32), b.contiguous().view(torch.int32))


@st.composite
def layers(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Layers to sense and to act at; some act before others sense."""
    sense = tuple(sorted(draw(st.sets(st.integers(0, 3), min_size=1, max_size=2))))
    act = tuple(sorted(draw(st.sets(st.integers(max(sense), 4), min_size=1))))
    return sense, act


@st.composite
def banks(draw: st.DrawFn) -> list[AnyGuard]:
    """Steering guards of different layers, pools and lengths."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    guards: list[AnyGuard] = []
    for i in range(draw(st.integers(1, 3))):
        sense, act = draw(layers())
        steps = draw(st.integers(1, 3))
        guards.append(
            SteerGuard(
                name=f"g{i}",
                sense_layers=sense,
                gates=whole(generator, len(sense), WIDTH),
                act_layers=act,
                directions=whole(generator, steps, len(act), WIDTH),
                pool=draw(st.integers(1, 3)),
                rest=draw(st.none() | st.integers(1, 4)),
            )
        )
    return guards


@st.composite
def mixed_banks(draw: st.DrawFn) -> list[AnyGuard]:
    """Guards of two methods in any order; the change of the second one depends on the state."""
    guards = draw(banks())
    for i in range(draw(st.integers(1, 2))):
        sense, act = draw(layers())
        steps, axis = draw(st.integers(1, 3)), draw(st.integers(0, WIDTH - 1))
        guards.append(
            Ablation(f"a{i}", sense, act, steps, axis, draw(st.sampled_from([-1.0, 1.0])))
        )
    return draw(st.permutations(guards))


# scores are thirds and halves of whole numbers: no score comes near these thresholds
thresholds = st.integers(-1, 15).map(lambda n: n + 0.1)


def row_guards(bank: Sequence[AnyGuard]) -> st.SearchStrategy[list[RowGuard]]:
    guard = st.builds(
        RowGuard,
        name=st.sampled_from([guard.name for guard in bank]),
        threshold=thresholds,
        strength=st.sampled_from([0.5, 1.0, 2.0]),
        acts=st.booleans(),
        recheck=st.none() | thresholds,
    )
    return st.lists(guard, max_size=len(bank), unique_by=lambda guard: guard.name)
