"""Slots: each row writes and reads at its own position; growing and moving lose nothing."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from steering.engines.transformers.cache import SlotCache
from steering.engines.transformers.engine import TransformersEngine
from steering.hidden.bank import HiddenBank
from tests.steering.engines.driver import generated, ids, serve, start
from tests.steering.tiny import prompt, tiny_model

HEADS, SIZE = 2, 3


def states(rows: int, tokens: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, HEADS, tokens, SIZE, generator=generator)


def positions(lengths: list[int]) -> Tensor:
    """Left padding: -1 where there is none of the row's own."""
    width = max(lengths)
    return torch.tensor([[t - (width - n) for t in range(width)] for n in lengths]).clamp(min=-1)


class Double:
    """A SlotCache of one layer, and the keys of each row as a plain list beside it."""

    def __init__(self, capacity: int) -> None:
        self.cache = SlotCache(1, capacity)
        self.keys: list[list[Tensor]] = []
        self.seed = 0

    def join(self, lengths: list[int]) -> None:
        first, at = len(self.keys), positions(lengths)
        self.seed += 1
        new = states(len(lengths), at.shape[1], self.seed)
        self.cache.prefill(torch.arange(first, first + len(lengths)), at)
        own, values = self.cache.update(new, -new, 0)
        assert own is new and torch.equal(values, -new)
        for row, length in enumerate(lengths):
            self.keys.append([new[row, :, t] for t in range(at.shape[1] - length, at.shape[1])])

    def step(self) -> None:
        lengths = [len(keys) for keys in self.keys]
        self.seed += 1
        new = states(len(lengths), 1, self.seed)
        self.cache.decode(torch.tensor(lengths), max(lengths) + 1)
        keys, values = self.cache.update(new, -new, 0)
        assert keys.shape == (len(lengths), HEADS, max(lengths) + 1, SIZE)
        assert torch.equal(values, -keys)
        for row, own in enumerate(self.keys):
            own.append(new[row, :, 0])
            assert torch.equal(keys[row, :, : len(own)], torch.stack(own, dim=1))
            assert keys[row].isfinite().all()

    def leave(self, row: int) -> None:
        last = len(self.keys) - 1
        if row != last:
            self.cache.move(last, row)
            self.keys[row] = self.keys[last]
        self.keys.pop()


@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_each_row_reads_what_it_wrote(data: st.DataObject) -> None:
    double = Double(capacity=3)
    # lengths around the growth of 256 columns
    lengths = st.sampled_from([1, 2, 5, 253, 254, 255, 256, 257, 511])
    for _ in range(data.draw(st.integers(1, 8))):
        free = 3 - len(double.keys)
        verbs = ["join"] * (free > 0) + ["step", "step", "leave"] * bool(double.keys)
        verb = data.draw(st.sampled_from(verbs))
        if verb == "join":
            double.join(data.draw(st.lists(lengths, min_size=1, max_size=free)))
        elif verb == "step":
            double.step()
        else:
            double.leave(data.draw(st.integers(0, len(double.keys) - 1)))


def test_a_reused_slot_holds_nothing_of_the_row_before() -> None:
    cache = SlotCache(1, 1)
    spoilt = torch.full((1, HEADS, 9, SIZE), torch.nan)
    cache.prefill(torch.tensor([0]), positions([9]))
    cache.update(spoilt, spoilt, 0)
    cache.prefill(torch.tensor([0]), positions([2]))
    cache.update(states(1, 2, 0), states(1, 2, 1), 0)
    cache.decode(torch.tensor([2]), 9)
    keys, values = cache.update(states(1, 1, 2), states(1, 1, 3), 0)
    assert keys.isfinite().all() and values.isfinite().all()
    assert not keys[:, :, 3:].any()


def test_padding_is_not_read_after_growth() -> None:
    cache = SlotCache(1, 2)
    new = states(2, 4, 0)
    new[1, :, :3] = torch.nan
    cache.prefill(torch.tensor([0, 1]), positions([4, 1]))
    cache.update(new, new, 0)
    cache.decode(torch.tensor([299, 1]), 300)
    keys, _ = cache.update(states(2, 1, 1), states(2, 1, 1), 0)
    assert keys.isfinite().all()


def test_answers_that_grow_the_cache_are_those_of_generate() -> None:
    model = tiny_model()
    engine = TransformersEngine(model, HiddenBank(), capacity=3)
    prompts = [prompt(n, seed) for seed, n in enumerate((250, 7, 300))]
    rows, _ = serve(engine, [start(p) for p in prompts], joins=[0, 0, 3], tokens=[12, 16, 6])
    for row, own, count in zip(ids(rows), prompts, (12, 16, 6), strict=True):
        assert row == generated(model, own, count)
