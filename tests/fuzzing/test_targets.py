"""The fuzzers' seeds, and each cut, doubled and flipped: what a search begins with."""

from __future__ import annotations

import random

import pytest

from tests.fuzzing.targets import TARGETS


@pytest.mark.parametrize("name", TARGETS)
def test_readers_refuse_in_words(name: str) -> None:
    target, rng = TARGETS[name], random.Random(0)
    for seed in target.seeds:
        target.read(seed)
        for _ in range(40):
            changed = bytearray(seed)
            for _ in range(rng.randint(1, 6)):
                at = rng.randrange(len(changed))
                if rng.random() < 0.3:
                    changed[at:at] = changed[: rng.randint(1, 40)]
                elif rng.random() < 0.3:
                    del changed[at : at + rng.randint(1, 20)]
                changed = changed or bytearray(b"a")
                changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
            target.read(bytes(changed))
