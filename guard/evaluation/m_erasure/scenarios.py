"""M-ErasureBench's five scenarios (arXiv 2512.22877), by their kinds of rows."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Scenario:
    """The concept is counted in rows of `kinds`, the things beside it in rows of `beside`."""

    name: str
    kinds: tuple[str, ...]
    beside: tuple[str, ...]


def _attack(name: str) -> Scenario:
    return Scenario(name, (name,), (name,))


TEXT = Scenario("text", ("direct", "paraphrase"), ("pair",))
LEARNED_BLACK = _attack("learned-black-box")
LEARNED_WHITE = _attack("learned-white-box")
INVERTED_BLACK = _attack("inverted-black-box")
INVERTED_WHITE = _attack("inverted-white-box")
SCENARIOS = (TEXT, LEARNED_BLACK, LEARNED_WHITE, INVERTED_BLACK, INVERTED_WHITE)
