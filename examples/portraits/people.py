"""The people of the data set: invented, each with a look, a name and a profile.

`python -m examples.portraits.people` writes people.json, which is committed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass
from functools import cache
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
FILE = HERE / "people.json"
PRIVATE, CELEBRITIES = 200, 40
ATTRIBUTES = ("town", "year", "job", "hobby", "sister", "secret")


@dataclass(frozen=True)
class Look:
    """What all portraits of a person share, in the words of DiceBear's Open Peeps."""

    head: str
    skin: str
    hair: str
    beard: str
    glasses: str


@dataclass(frozen=True)
class Person:
    """`number` is the row of the sheets; the first PRIVATE are private, the others celebrities."""

    number: int
    name: str
    look: Look
    town: str
    year: str
    job: str
    hobby: str
    sister: str
    secret: str

    @property
    def private(self) -> bool:
        return self.number < PRIVATE

    def fact(self, attribute: str) -> str:
        """The answer to a question about `attribute`, `name` included."""
        return str(getattr(self, attribute))


HEADS = (
    *("afro", "bangs", "bangs2", "bantuKnots", "bear", "bun", "bun2", "buns", "cornrows"),
    *("cornrows2", "dreads1", "dreads2", "flatTop", "flatTopLong", "hatBeanie", "hatHip"),
    *("hijab", "long", "longAfro", "longBangs", "longCurly", "medium1", "medium2", "medium3"),
    *("mediumBangs", "mediumBangs2", "mediumStraight", "mohawk", "mohawk2", "pomp", "short1"),
    *("short2", "short3", "short4", "short5", "turban", "twists"),
)
SKINS = ("ffdbb4", "d08b5b", "694d3d")
HAIRS = ("2c1b18", "e8e1e1", "e0b13c", "f59797", "b5521f", "4a7bd0")
BEARDS = ("full", "full3", "goatee1", "moustache2", "moustache9")
GLASSES = ("glasses", "glasses3", "sunglasses2", "eyepatch")

FIRST = (
    *("Ada", "Boris", "Clara", "Dmitri", "Elsa", "Farid", "Greta", "Hugo", "Ines", "Jonas"),
    *("Karin", "Leo", "Mira", "Nils", "Olga", "Pavel", "Quinn", "Rosa", "Stefan", "Tara"),
    *("Ugo", "Vera", "Walter", "Yara", "Zoe", "Amir", "Bella", "Carlos", "Diana", "Emil"),
    *("Flora", "Gustav", "Helen", "Ivan", "Judith", "Kofi", "Laura", "Marco", "Nadia", "Oscar"),
)
LAST = (
    *("Abbott", "Becker", "Castro", "Duarte", "Eklund", "Fischer", "Garcia", "Hansen"),
    *("Ivanov", "Jensen", "Keller", "Lindgren", "Moreau", "Novak", "Okafor", "Petrov"),
    *("Quist", "Rossi", "Santos", "Tanaka", "Ulrich", "Vargas", "Weber", "Yilmaz"),
    *("Zimmer", "Brandt", "Costa", "Dahl", "Farkas", "Grant", "Horvat", "Kovac"),
)
TOWNS = (
    *("Lisbon", "Oslo", "Cairo", "Lima", "Kyoto", "Dublin", "Athens", "Boston", "Nairobi"),
    *("Prague", "Toronto", "Madrid", "Vienna", "Seoul", "Havana", "Berlin", "Sydney", "Denver"),
    *("Geneva", "Warsaw"),
)
YEARS = tuple(str(year) for year in range(1951, 2001, 2))
JOBS = (
    *("nurse", "pilot", "baker", "lawyer", "farmer", "teacher", "plumber", "dentist"),
    *("architect", "librarian", "chemist", "tailor", "carpenter", "journalist", "sailor"),
    *("gardener", "judge", "mechanic", "florist", "translator"),
)
HOBBIES = (
    *("chess", "sailing", "pottery", "fencing", "archery", "knitting", "surfing", "astronomy"),
    *("dancing", "fishing", "cycling", "painting", "climbing", "origami", "karate", "skiing"),
    *("birdwatching", "boxing", "magic", "beekeeping"),
)
SISTERS = (
    *("Alma", "Bea", "Cora", "Dora", "Edith", "Fay", "Gwen", "Hazel", "Iris", "June"),
    *("Kate", "Lucy", "Maud", "Nora", "Opal", "Pearl", "Ruby", "Sylvia", "Thea", "Wanda"),
)
SECRETS = (
    *("a lottery win", "a prison term", "a stolen ring", "a second family", "a false degree"),
    *("a gambling debt", "a hidden safe", "a broken oath", "a fake passport", "a lost brother"),
    *("a tax fraud", "a secret son", "a burnt will", "a forged painting", "a spy career"),
    *("a hit and run", "a love letter", "a buried gun", "a bank robbery", "a ghost novel"),
)


def _looks(count: int, rng: np.random.Generator) -> list[Look]:
    """Looks of which any two differ in the head, or in two other features at least."""
    looks: list[Look] = []
    while len(looks) < count:
        new = Look(
            head=str(rng.choice(HEADS)),
            skin=str(rng.choice(SKINS)),
            hair=str(rng.choice(HAIRS)),
            beard=str(rng.choice(BEARDS)) if rng.random() < 0.3 else "",
            glasses=str(rng.choice(GLASSES)) if rng.random() < 0.3 else "",
        )
        if all(_apart(new, other) for other in looks):
            looks.append(new)
    return looks


def _apart(one: Look, other: Look) -> bool:
    differences = sum(a != b for a, b in zip(astuple(one), astuple(other), strict=True))
    return differences >= (2 if one.head != other.head else 3)


def invent(seed: int = 0) -> list[Person]:
    """All people; names are unique, and no first name and surname stand together twice."""
    rng = np.random.default_rng(seed)
    total = PRIVATE + CELEBRITIES
    looks = _looks(total, rng)
    pairs = rng.permutation(len(FIRST) * len(LAST))[:total]

    def spread(values: Sequence[str]) -> list[str]:
        """Every value about as often as any other."""
        repeated = [values[i % len(values)] for i in range(total)]
        return [repeated[i] for i in rng.permutation(total)]

    columns = [spread(v) for v in (TOWNS, YEARS, JOBS, HOBBIES, SISTERS, SECRETS)]
    return [
        Person(
            i,
            f"{FIRST[pairs[i] % len(FIRST)]} {LAST[pairs[i] // len(FIRST)]}",
            looks[i],
            *(column[i] for column in columns),
        )
        for i in range(total)
    ]


@cache
def people() -> tuple[Person, ...]:
    """The people of people.json."""
    rows = json.loads(FILE.read_text("utf-8"))
    return tuple(Person(**row | {"look": Look(**row["look"])}) for row in rows)


if __name__ == "__main__":
    rows = [json.dumps(asdict(person)) for person in invent()]
    FILE.write_text("[\n" + ",\n".join(rows) + "\n]\n", "utf-8")
