"""Packed rows whose tokens are in the cache already: decided on as if they had been computed."""

from __future__ import annotations

import random

import torch

from tests.steering.hidden.guards import WIDTH, bank_of_all, same_bits, whole
from tests.steering.hidden.packing import GUARD, LAYERS, Engine, Request, long_request


def test_cached_tokens_of_a_prompt_are_decided_on_like_computed_ones() -> None:
    """The gates of a cached prefix are those of the request that computed it."""
    generator = torch.Generator().manual_seed(3)
    engine = Engine(bank_of_all([GUARD]), random.Random(0), generator)
    first = long_request(generator, 10)
    # the topic is at the beginning of the prompt only
    first.states[:2, 1:3] = 3.0
    first.states[:2, 3:] = -1.0
    engine.admit(0, first)
    engine.forward({0: 10}, {})
    again = Request(first.guards, 10, first.states.clone())
    engine.admit(1, again, cached=engine.places[0][:8])
    engine.forward({1: 2}, {})
    assert engine.table.readings(1) == engine.table.readings(0)
    assert engine.table.readings(1)["g"].position == 0
    # the same where the cache has been copied
    engine.table.remove(1)
    copied = next(engine.free)[:8]
    engine.table.copy(engine.places[0][:8], copied)
    engine.admit(1, again, cached=copied)
    engine.forward({1: 2}, {})
    assert engine.table.readings(1)["g"].position == 0
    # a prefix that is said to be cached, without gates: the topic is missed, and that is known
    engine.table.remove(1)
    engine.admit(1, again, cached=next(engine.free)[:8])
    engine.forward({1: 2}, {})
    unknown = engine.table.readings(1)["g"]
    assert unknown.position is None and not unknown.valid


def test_a_request_whose_whole_prompt_is_cached_is_decided_on_again() -> None:
    """The request was postponed after its prompt, and comes back with all of it in the cache."""
    generator = torch.Generator().manual_seed(3)
    engine = Engine(bank_of_all([GUARD]), random.Random(0), generator)
    request = long_request(generator, 6, answer=4, threshold=-1e9)
    engine.admit(0, request)
    engine.forward({0: 6}, {})
    engine.forward({0: 1}, {})
    before = engine.table.readings(0)
    engine.table.remove(0)
    engine.table.add(0, request.guards)
    engine.forward({0: 1}, {})
    assert engine.table.readings(0) == before and before["g"].position == 0
    expected, _ = request.alone(engine.bank)
    assert same_bits(engine.after[0][:, :8], expected[:, :8])


def test_a_cached_response_is_part_of_the_next_prompt() -> None:
    generator = torch.Generator().manual_seed(3)
    engine = Engine(bank_of_all([GUARD]), random.Random(0), generator)
    first = long_request(generator, 4, answer=4)
    first.states[:2] = -1.0
    # the topic is in the response alone, which the guard does not recheck
    first.states[:2, 5:7] = 3.0
    engine.admit(0, first)
    engine.run(preempts=False, drafts=False)
    assert engine.table.readings(0)["g"].position is None
    question = whole(generator, LAYERS, 3, WIDTH)
    question[:2] = -1.0
    following = Request(first.guards, 10, torch.cat([first.states, question], 1))
    engine.admit(1, following, cached=engine.places[0][:8])
    engine.forward({1: 2}, {})
    reading = engine.table.readings(1)["g"]
    assert reading.valid and reading.position == 0
