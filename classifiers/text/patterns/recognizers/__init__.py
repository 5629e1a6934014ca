"""Recognisers: the shipped lists of kinds that are found in texts.

A recogniser is a small file: an expression for candidates, and a judge that asks a library whether
a candidate is one. To add one, write the file, name its expression in the list below, and give
its test a table of texts in which it is found and of texts in which it is not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final, Literal

from classifiers.text.disguises.decoding import RUNS
from classifiers.text.disguises.views import PLAIN
from classifiers.text.patterns.candidates import Expression
from classifiers.text.patterns.recognizers.people.accounts import IBANS
from classifiers.text.patterns.recognizers.people.addresses import IPV4, IPV6
from classifiers.text.patterns.recognizers.people.birth_dates import BIRTH_DATES
from classifiers.text.patterns.recognizers.people.cards import CARDS
from classifiers.text.patterns.recognizers.people.emails import EMAILS
from classifiers.text.patterns.recognizers.people.national_numbers import NATIONAL_NUMBERS
from classifiers.text.patterns.recognizers.people.phones import (
    INTERNATIONAL,
    NATIONAL,
    NORTH_AMERICAN,
)
from classifiers.text.patterns.recognizers.people.uk_nino import UK_NINO
from classifiers.text.patterns.recognizers.people.us_ssn import US_SSN
from classifiers.text.patterns.recognizers.secrets.addresses import (
    CREDENTIALS,
    HEADERS,
    URL_PASSWORDS,
)
from classifiers.text.patterns.recognizers.secrets.assignments import PASSWORDS
from classifiers.text.patterns.recognizers.secrets.blocks import BLOCKS, PUTTY
from classifiers.text.patterns.recognizers.secrets.commands import COMMAND_PASSWORDS
from classifiers.text.patterns.recognizers.secrets.jwts import JWTS
from classifiers.text.patterns.recognizers.secrets.tokens import TOKENS
from classifiers.text.patterns.recognizers.secrets.vendor_keys import VENDOR_KEYS

Shipped = Literal["secrets", "personal-data"]
_VIEWS: Final = frozenset({PLAIN, *RUNS})
"""Respellings (leet, letters apart) turn noise into numbers."""
_PERSONAL_DATA: Final = (
    *(EMAILS, US_SSN, UK_NINO, CARDS, IBANS, INTERNATIONAL, NORTH_AMERICAN, NATIONAL_NUMBERS),
    *(NATIONAL, IPV4, IPV6, BIRTH_DATES),
)
_SECRETS: Final = (
    *(BLOCKS, PUTTY, JWTS, TOKENS, VENDOR_KEYS, URL_PASSWORDS, CREDENTIALS, COMMAND_PASSWORDS),
    *(HEADERS, PASSWORDS),
)
SHIPPED: Final[Mapping[Shipped, tuple[Expression, ...]]] = {
    "secrets": tuple(replace(each, views=_VIEWS) for each in _SECRETS),
    "personal-data": tuple(replace(each, views=_VIEWS) for each in _PERSONAL_DATA),
}
"""The expressions of each list. Where two find the same, the earlier one names it."""
