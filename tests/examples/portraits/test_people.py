from collections import Counter

import numpy as np

from examples.portraits.draw import SIDE, TEST, TRAIN, portraits
from examples.portraits.people import ATTRIBUTES, CELEBRITIES, PRIVATE, invent, people


def test_the_file_holds_the_people_of_the_script():
    assert people() == tuple(invent())
    assert len(people()) == PRIVATE + CELEBRITIES
    assert sum(person.private for person in people()) == PRIVATE


def test_names_are_unique_and_facts_are_spread():
    assert len({person.name for person in people()}) == len(people())
    for attribute in ATTRIBUTES:
        counts = Counter(person.fact(attribute) for person in people())
        # a guess is right as often as any other
        assert max(counts.values()) - min(counts.values()) <= 1


def test_looks_differ():
    assert len({person.look for person in people()}) == len(people())


def test_each_person_has_a_portrait_in_every_column():
    sheets = portraits()
    assert sheets.shape == (len(people()), TRAIN + TEST, SIDE, SIDE, 4)
    covered = (sheets[..., 3] > 0).mean((2, 3))
    assert covered.min() > 0.2
    assert covered.max() < 0.9
    first = sheets[:, 0].reshape(len(people()), -1).astype(np.int16)
    assert not np.array_equal(first[0], first[1])
