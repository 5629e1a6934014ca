"""Names of strangers: bounded, of one split, and such as share a part with a name."""

from __future__ import annotations

import pytest

from guard.data.bank.names import parts, people, sharing
from guard.data.prompts import Split


def test_the_parts_of_the_splits_are_different_ones() -> None:
    for train, held_out in zip(parts("train"), parts("validation"), strict=True):
        for mine, theirs in zip(train, held_out, strict=True):
            assert mine and theirs and not {*mine} & {*theirs}


def test_people_are_different_and_the_same_each_time() -> None:
    found = people("train", 300)
    assert len({*found}) == 300 and found == people("train", 300)
    assert not {*found} & {*people("validation", 300)}


def test_more_people_than_there_are_names_for_are_an_error() -> None:
    with pytest.raises(ValueError, match="10000 names of strangers are wanted"):
        people("validation", 10_000)
    with pytest.raises(ValueError, match="can be made"):
        sharing("Madonna", "validation", 10_000)


@pytest.mark.parametrize("split", ["train", "validation"])
def test_half_of_the_names_share_the_first_part_half_the_last(split: Split) -> None:
    found = sharing("Anna van Muster", split, 6)
    assert len({*found}) == 6
    assert sum(name.startswith("Anna van ") for name in found) == 3
    assert sum(name.endswith(" van Muster") for name in found) == 3


def test_there_are_as_many_as_there_are_parts_and_never_the_name_itself() -> None:
    many = sharing("Anna Muster", "validation", 10_000)
    assert 50 < len(many) < 1000 and len({*many}) == len(many)
    (first, *_), (last, *_) = parts("train")[0]
    assert f"{first} {last}" not in sharing(f"{first} {last}", "train", 10_000)
    assert len({*sharing("Madonna", "train", 6)}) == 6
