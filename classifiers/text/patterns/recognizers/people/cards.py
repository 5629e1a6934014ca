"""CREDIT_CARD: numbers of payment cards, 12 to 19 digits with Luhn's check digit."""

from __future__ import annotations

import re
from typing import Final

from classifiers.text.patterns.candidates import Candidate, Expression, Finding
from classifiers.text.patterns.recognizers.labels import Labels

_LABELS: Final = Labels(
    *("card", "credit", "debit", "visa", "mastercard", "amex", "american express", "discover"),
    *("diners", "jcb", "unionpay", "maestro", "mir", "rupay", "pan", "cc", "ccn", "payment"),
    *("karte", "kreditkarte", "kartennummer", "carte", "numero de carte", "tarjeta", "carta di"),
    *(
        "cartao",
        "kaart",
        "kort",
        "kortti",
        "karta",
        "kart",
        "карта",
        "карты",
        "卡",
        "カード",
        "카드",
    ),
    *("بطاقة", "kad", "kartu", "thẻ", "כרטיס", "κάρτα"),
)
_BRANDS: Final = re.compile(
    r"""(?:4(?:\d{12}|\d{15}|\d{18})            # Visa
    |(?:5[1-5]|2(?:2[2-9]|[3-6]\d|7[01])\d|2720)\d+(?<=^\d{16})   # Mastercard
    |3[47]\d{13}                                # American Express
    |3(?:0[0-59]|[689]\d)\d{11}|3(?:0[0-59]|[689]\d)\d{13}         # Diners Club
    |(?:6011|64[4-9]\d|65\d\d|622\d)\d{12,15}   # Discover
    |35\d{14,17}|(?:2131|1800)\d{11}            # JCB
    |62\d{14,17}|81\d{14,17}                    # UnionPay
    |(?:50|5[6-9]|6\d)\d{10,17}                 # Maestro
    |220[0-4]\d{12,15}                          # Mir
    |(?:508|60|82|353|356)\d+(?<=^\d{16})      # RuPay
    |(?:606282|637|9792)\d+(?<=^\d{16})        # Hipercard, Troy
    |5019\d{12}|(?:506|507|650)\d+(?<=^\d{16})  # Dankort, Verve
    )$""",
    re.VERBOSE,
)
_GROUPS: Final = re.compile(
    r"\d+$|\d{4}(?:(?P<a> {1,2}|[.-])\d{4})(?:(?P=a)\d{4}){1,2}(?:(?P=a)\d{1,4})?$"
    r"|\d{4}(?P<b>[ .-])\d{6}(?P=b)\d{4,5}$|\d(?:(?P<c>[ .-])\d)(?:(?P=c)\d)+$"
)
_LENGTHS: Final = range(12, 20)


_SEPARATORS: Final = str.maketrans("", "", " .-")
_DOUBLED: Final = [sum(divmod(2 * digit, 10)) for digit in range(10)]


def _judge(candidate: Candidate) -> Finding | None:
    value = candidate.value
    digits = value.translate(_SEPARATORS)
    if len(set(digits)) < 2:
        return None
    lengths = _lengths(digits)
    if not lengths:
        return None
    places = [place for place, char in enumerate(value) if char.isdigit()]
    label: str | None = ""
    # what follows behind a space may be another number
    for length in reversed(lengths):
        end = places[length - 1] + 1
        if value[end : end + 1].isdigit() or not _GROUPS.match(value[:end]):
            continue
        is_brand = _BRANDS.match(digits[:length]) is not None
        if label == "":
            label = _LABELS.before(candidate)
        if is_brand or label:
            confidence = 1.0 if label and is_brand else 0.8
            return candidate.part(0, end).is_("CREDIT_CARD", confidence)
    return None


def _lengths(digits: str) -> list[int]:
    # The lengths at which Luhn's check holds. In a row of digits every one begins a candidate, so
    # all lengths are summed at once, where stdnum would read the digits anew for each.
    found = []
    total = other = 0  # the last digit counts once in the one, double in the other
    for length, sign in enumerate(digits, 1):
        digit = ord(sign) - 48
        total, other = other + digit, total + _DOUBLED[digit]
        if length in _LENGTHS and total % 10 == 0:
            found.append(length)
    return found


CARDS: Final = Expression(
    labels=frozenset({"CREDIT_CARD"}),
    # inside of a name, a version or an identifier there is none
    pattern=(
        r"(?:^|[^a-z0-9._-]|[^a-z0-9][._-]|[a-z]\.)"
        r"(?P<value>[1-9](?:(?: {1,2}|[.-])?[0-9]){11,18})(?:[^a-z0-9_-]|-(?:[^a-z0-9]|$)|$)"
    ),
    judge=_judge,
    longest=60,
)
