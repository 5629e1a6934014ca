"""Lists of names that are found with typing errors: `python -m benchmarks.patterns.typos`.

Lists of 10 to 10,000 invented people of ten locales. For each: its processor time on some 200
tokens, beside that of the same list without typing errors, the shares of its own names with one
typing error that it finds, and of other names and questions, in which it should find none.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import string
import time
from collections.abc import Sequence

from faker import Faker

from classifiers.text.patterns.matching import PatternSet
from guard.data.bank.bank import topics
from guard.evaluation.shares import Share

LOCALES = ["en_US", "en_GB", "de_DE", "fr_FR", "es_ES", "it_IT", "nl_NL", "pt_BR", "pl_PL", "sv_SE"]
SIZES = (10, 100, 1000, 10_000)
OTHERS = 2000
CHARACTERS = 1000
"""Of about 200 tokens."""
ROUNDS = 7


def people(count: int, seed: int) -> list[str]:
    """First and last names, no two alike."""
    fakers = [Faker(locale) for locale in LOCALES]
    for number, faker in enumerate(fakers):
        faker.seed_instance(seed + number)
    names: dict[str, None] = {}
    for faker in itertools.cycle(fakers):
        names.setdefault(f"{faker.first_name()} {faker.last_name()}")
        if len(names) == count:
            return list(names)
    raise AssertionError


def misspelt(name: str, rng: random.Random) -> str:
    """A name with one typing error behind its first letter."""
    place = rng.randrange(1, len(name) - 1)
    before, letter, after = name[:place], name[place], name[place + 1 :]
    other = rng.choice(string.ascii_lowercase)
    changed = rng.choice(
        (
            before + after,
            before + other + letter + after,
            before + other + after,
            before + after[0] + letter + after[1:],
        )
    )
    return changed if changed != name else misspelt(name, rng)


def list_of(names: Sequence[str], *, typos: bool) -> PatternSet:
    """A list of names."""
    words = ", ".join(map(json.dumps, names))
    return PatternSet.from_toml(
        f'[[words]]\nlabel = "NAME"\ntypos = {json.dumps(typos)}\nwords = [{words}]\n'
    )


def milliseconds(patterns: PatternSet, texts: Sequence[str]) -> float:
    """The processor time of a text: the shortest of a few rounds over all."""
    rounds = []
    for _ in range(ROUNDS):
        began = time.process_time()
        for text in texts:
            patterns.find(text)
        rounds.append(time.process_time() - began)
    return 1000 * min(rounds) / len(texts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    every = people(max(SIZES) + OTHERS, options.seed)
    others = every[max(SIZES) :]
    bank = [prompt for topic in topics() for prompt in topic.prompts]
    prose = " ".join(rng.sample(bank, 200))
    texts = {
        "questions": [prose[i : i + CHARACTERS] for i in range(0, len(prose), CHARACTERS)],
        "names": [" ".join(others[i : i + 75]) for i in range(0, 600, 75)],
    }
    for size in SIZES:
        listed = every[:size]
        began = time.process_time()
        patterns, exact = list_of(listed, typos=True), list_of(listed, typos=False)
        print(f"{size} names: made in {time.process_time() - began:.2f} s")
        for kind, chosen in texts.items():
            with_typos, without = (milliseconds(each, chosen) for each in (patterns, exact))
            print(f"  {kind}: {with_typos:.2f} ms a text, {without:.2f} without typing errors")
        sample = rng.sample(listed, min(size, OTHERS))
        found = [bool(patterns.find(f"who is {misspelt(name, rng)}?")) for name in sample]
        print(f"  one typing error, found: {Share.of(found)}")
        hit = [bool(patterns.find(f"Who is {name}?")) for name in others]
        print(f"  other people's names, found: {Share.of(hit)}")
        hit = [bool(patterns.find(prompt)) for prompt in bank]
        print(f"  questions of the retain bank, found: {Share.of(hit)}")


if __name__ == "__main__":
    main()
