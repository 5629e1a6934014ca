"""Caches of prompts and rows: each row reads what it wrote, also after growth and moves."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from steering.engines.transformers.cache import PromptCache, SlotCache
from steering.engines.transformers.engine import TransformersEngine
from steering.engines.transformers.lanes import Lanes
from steering.hidden.bank import HiddenBank
from tests.steering.engines.driver import generated, ids, serve, start
from tests.steering.tiny import prompt, tiny_model

HEADS, SIZE = 2, 3


def states(rows: int, tokens: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, HEADS, tokens, SIZE, generator=generator)


class CheckedLanes:
    """Lanes of one layer that are checked against plain lists of each row's keys."""

    def __init__(self) -> None:
        self.lanes = Lanes(1)
        self.keys: list[list[Tensor]] = []
        self.seed = 0

    def join(self, lengths: list[int]) -> None:
        width = max(lengths)
        self.seed += 1
        new = states(len(lengths), width, self.seed)
        for row, length in enumerate(lengths):
            new[row, :, : width - length] = torch.nan  # padding
        prompts = PromptCache(1, width)
        keys, values = prompts.update(new, -new, 0)
        assert keys is new and torch.equal(values.nan_to_num(), -new.nan_to_num())
        self.lanes.add(lengths, prompts)
        for row, length in enumerate(lengths):
            self.keys.append([new[row, :, t] for t in range(width - length, width)])

    def step(self) -> None:
        self.lanes.outgrow([len(keys) for keys in self.keys])
        rows = []
        for lane in self.lanes:
            rows += lane.rows
            lengths = [len(self.keys[row]) for row in lane.rows]
            self.seed += 1
            new = states(len(lengths), 1, self.seed)
            lane.cache.decode(torch.tensor(lengths), max(lengths) + 1)
            keys, values = lane.cache.update(new, -new, 0)
            assert keys.shape == (len(lengths), HEADS, max(lengths) + 1, SIZE)
            assert max(lengths) < lane.limit
            assert len(lengths) <= lane.cache.slots < 2 * len(lengths) + 2
            assert lane.cache.columns <= lane.limit
            assert torch.equal(values, -keys)
            for slot, row in enumerate(lane.rows):
                self.keys[row].append(new[slot, :, 0])
                expected = torch.stack(self.keys[row], dim=1)
                assert torch.equal(keys[slot, :, : expected.shape[1]], expected)
                assert keys[slot].isfinite().all()
        assert sorted(rows) == [*range(len(self.keys))]

    def leave(self, row: int) -> None:
        self.lanes.replace(row)
        last = self.keys.pop()
        if row < len(self.keys):
            self.keys[row] = last


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_each_row_reads_what_it_wrote(data: st.DataObject) -> None:
    checked = CheckedLanes()
    # lengths around the growth of 256 columns, and around the limits of lanes
    lengths = st.sampled_from([1, 2, 5, 254, 255, 256, 257, 511, 1022, 1023, 1024, 2047, 2048])
    for _ in range(data.draw(st.integers(1, 10))):
        free = 4 - len(checked.keys)
        verbs = ["join"] * (free > 0) + ["step", "step", "leave"] * bool(checked.keys)
        verb = data.draw(st.sampled_from(verbs))
        if verb == "join":
            checked.join(data.draw(st.lists(lengths, min_size=1, max_size=free)))
        elif verb == "step":
            checked.step()
        else:
            checked.leave(data.draw(st.integers(0, len(checked.keys) - 1)))


def test_a_reused_slot_holds_nothing_of_the_row_before() -> None:
    cache = SlotCache(1)
    cache.reserve(1, 9)
    nan = torch.full((1, HEADS, 9, SIZE), torch.nan)
    cache.put(0, 0, (nan, nan))
    cache.put(0, 0, (states(1, 2, 0), states(1, 2, 1)))
    cache.decode(torch.tensor([2]), 9)
    keys, values = cache.update(states(1, 1, 2), states(1, 1, 3), 0)
    assert keys.isfinite().all() and values.isfinite().all()
    assert not keys[:, :, 3:].any()


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_a_prompt_in_parts_is_kept_as_a_whole(parts: list[int]) -> None:
    new = states(1, sum(parts), 0)
    prompts = PromptCache(1, sum(parts))
    for part in parts:
        read = slice(prompts.past, prompts.past + part)
        keys, values = prompts.update(new[:, :, read], -new[:, :, read], 0)
        prompts.past += part
        assert torch.equal(keys, new[:, :, : prompts.past]) and torch.equal(values, -keys)
    keys, values = prompts.take(0)
    assert torch.equal(keys, new) and torch.equal(values, -new)


def test_a_long_row_takes_no_memory_for_its_neighbours() -> None:
    lanes = Lanes(1)
    for _ in range(9):
        prompts = PromptCache(1, 5)
        prompts.update(states(1, 5, 0), states(1, 5, 0), 0)
        lanes.add([5], prompts)
    long = PromptCache(1, 5000)
    long.update(states(1, 5000, 0), states(1, 5000, 0), 0)
    lanes.add([5000], long)
    sizes = [(lane.cache.slots, lane.cache.columns) for lane in lanes]
    assert sizes == [(10, 256), (1, 5120)]
    lanes.replace(9)
    assert [lane.rows for lane in lanes] == [[*range(9)]]


def test_answers_that_grow_the_cache_are_those_of_generate() -> None:
    model = tiny_model()
    engine = TransformersEngine(model, HiddenBank(), capacity=3)
    prompts = [prompt(n, seed) for seed, n in enumerate((250, 7, 300))]
    rows, _ = serve(engine, [start(p) for p in prompts], joins=[0, 0, 3], tokens=[12, 16, 6])
    for row, tokens, count in zip(ids(rows), prompts, (12, 16, 6), strict=True):
        assert row == generated(model, tokens, count)
