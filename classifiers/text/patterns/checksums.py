"""Checks of the matches of a regular expression: checksums and other tests beyond expressions.

A check takes the matched text and accepts or refuses it; `CHECKS` has those that a list may name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from classifiers.text.patterns.recognizers.people.addresses import ipv4
from classifiers.text.patterns.recognizers.people.libraries import answer
from classifiers.text.patterns.recognizers.secrets.entropy import (
    bits_per_character,
    has_letters_and_digits,
)

Check = Callable[[str], bool]


def luhn(match: str) -> bool:
    """Whether the digits pass the check of payment cards (ISO/IEC 7812-1, annex B)."""
    from stdnum import luhn

    digits = "".join(filter(str.isdigit, match))
    return len(set(digits)) > 1 and bool(answer(luhn.is_valid, digits))


def iban(match: str) -> bool:
    """Whether the length is that of the country and the check of ISO 13616 (modulo 97) holds."""
    from stdnum import iban

    return match.isascii() and bool(answer(iban.is_valid, match, check_country=False))


def _entropy(least: float) -> Check:
    return lambda match: bits_per_character(match) >= least


def _password(least: float) -> Check:
    return lambda match: has_letters_and_digits(match) and bits_per_character(match) >= least


CHECKS: Final[Mapping[str, Callable[[float], Check]]] = {
    "luhn": lambda _: luhn,
    "iban": lambda _: iban,
    "ipv4": lambda _: ipv4,
    "entropy": _entropy,
    "password": _password,
}
"""Checks by name. Each is made from the least bits per character, which the last two need."""
