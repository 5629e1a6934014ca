"""IBAN: international bank account numbers, with the length and check digits of the country."""

from __future__ import annotations

from functools import cache
from typing import Any, Final

from stdnum import iban

from classifiers.text.patterns.candidates import Candidate, Expression, Finding
from classifiers.text.patterns.recognizers.people.libraries import answer


@cache
def _length(country: str) -> int | None:
    """The length of the account numbers of a country, from the registry that stdnum ships."""
    for _, info in _registry().info(country):
        if "bban" in info:
            parts = info["bban"].replace(" ", "").split("!")
            # "4!a6!n8!n": lengths before the signs
            return 4 + sum(int(part.lstrip("acn")) for part in parts[:-1])
    return None


def _registry() -> Any:
    from stdnum import numdb

    return numdb.get("iban")


def _judge(candidate: Candidate) -> Finding | None:
    value = candidate.value
    country = value[:2].upper()
    length = _length(country)
    if length is None:
        return None
    places = [place for place, char in enumerate(value) if char.isalnum()]
    if len(places) < length:
        return None
    end = places[length - 1] + 1
    behind = value[end : end + 1] or candidate.following
    if behind.isdigit() or (behind.isalpha() and value[end - 1].isalpha()):
        return None
    if not answer(iban.is_valid, value[:end], check_country=False):
        return None
    return candidate.part(0, end).is_("IBAN", 1.0, country)


IBANS: Final = Expression(
    labels=frozenset({"IBAN"}),
    pattern=r"(?:^|[^a-z0-9])(?P<value>[a-z]{2}[0-9]{2}(?:[ .-]?[a-z0-9]){11,30})",
    judge=_judge,
    longest=65,
)
