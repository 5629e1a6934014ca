"""PHONE: telephone numbers, judged by the numbering plans of all countries (libphonenumber).

International numbers and North American ones are known by their form, national ones of other
countries by a label, or by a leading zero and groups.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from classifiers.text.patterns.candidates import Candidate, Expression, Finding
from classifiers.text.patterns.recognizers.labels import Labels
from classifiers.text.patterns.recognizers.people import numbering_plans

_NAMES: Final = (
    *("tel", "telephone", "phone", "cellphone", "mobile", "cell", "fax", "call", "dial", "ring"),
    *("callback", "hotline", "whatsapp", "sms", "text me at", "reach me", "contact number"),
    *("contact no", "homephone", "workphone", "mobilephone", "msisdn"),
    *("on signal", "via signal", "signal number"),
    *("telefon", "handy", "mobil", "rufnummer", "durchwahl", "festnetz", "rückruf", "ruf mich"),
    *("téléphone", "portable", "appelez", "joindre au", "teléfono", "telefone", "móvil"),
    *("celular", "llámame", "llamar al", "telemóvel", "ligue", "telefono", "cellulare"),
    *("chiama", "telefoon", "mobiel", "bel ", "telefonnummer", "puhelin", "komórka", "zadzwoń"),
    *("mobilní", "telefonszám", "τηλέφωνο", "κινητό", "телефон", "тел", "моб", "звоните"),
    *("мобільний", "cep", "電話", "携帯", "电话", "手机", "致电", "전화", "휴대폰", "연락처"),
    *("هاتف", "جوال", "טלפון", "נייד", "फ़ोन", "मोबाइल", "โทร", "điện thoại", "sđt", "telp", "hp"),
)
_LABELS: Final = Labels(*_NAMES)
_BESIDE: Final = Labels(*_NAMES, gap=3)
_SECONDS: Final = re.compile(r"1[2-9][0-9]{8}$")
"""A time in seconds since 1970, from 2008 to 2033; later ones look like numbers in Washington."""
_EXTENSION: Final = r"(?: ?(?:x|ext\.?|extension|#|durchwahl) ?[0-9]{1,6})?"
_DATE: Final = re.compile(
    r"(?:19|20)[0-9]{2}[ ./-](?:0?[1-9]|1[0-2])[ ./-][0-3]?[0-9](?![0-9])"
    r"|[0-3]?[0-9][ ./-][0-3]?[0-9][ ./-](?:19|20)[0-9]{2}(?![0-9])"
)
_OTHER: Final = re.compile(r"[0-9]{3}-[0-9]{2}-[0-9]{4}$|[0-9]{1,3}(?:\.[0-9]{1,3}){3}$")
"""The forms of a US social security number and of an address of IPv4."""
_TRUNK: Final = re.compile(
    r"\(0[0-9 ]+\)|0[1-9][0-9]{0,4}(?:[ ./-]{1,3}|/)[0-9]{2,8}(?:[ -][0-9]{2,5}){0,4}(?![0-9-])"
    r"|8 ?\([0-9]{3}\)"
)
"""National numbers with the digit that begins calls inside a country, in groups."""
_IN_NUMBER: Final = re.compile(r"[0-9][:.,]$")
"""Before the seconds of a time."""
_LABEL: Final = "PHONE"
_CERTAIN, _LIKELY, _FORM = 1.0, 0.8, 0.5


def _ends(value: str, least: int, most: int) -> Iterator[tuple[int, str]]:
    """Ends of the groups of digits of a number, the longest first, and the digits up to there."""
    digits, found = "", []
    for place, char in enumerate(value):
        if char.isdigit():
            digits += char
            is_end = not value[place + 1 : place + 2].isdigit()
            if is_end and least <= len(digits) <= most:
                found.append((place + 1, digits))
        elif char.isalpha() or char == "#":
            break  # an extension
    return reversed(found)


def _international(candidate: Candidate) -> Finding | None:
    value = candidate.value
    if _OTHER.match(value):
        return None
    is_plain = value.isdigit() or _IN_NUMBER.search(candidate.before)
    if is_plain and not _LABELS.before(candidate):
        return None  # 00... may be anything
    plain = value.replace("(0)", "   ")
    for end, digits in _ends(plain, 8, 17):
        number = digits.removeprefix("00") if value[0] == "0" else digits
        region = numbering_plans.valid_region("+" + number)
        if region is None:
            continue
        rest = value[end:]
        has_extension = rest[:1].isalpha() or rest[:1] in "# " and re.match(_EXTENSION + "$", rest)
        end = len(value) if has_extension else end
        closes = value[end : end + 1] == ")" and value[:end].count("(") > value[:end].count(")")
        country = region if region.isalpha() else None
        return candidate.part(0, end + closes).is_(_LABEL, _CERTAIN, country)
    if _LABELS.before(candidate) and value[0] == "+":
        for end, digits in _ends(plain, 8, 15):
            if numbering_plans.is_possible("+" + digits):
                return candidate.part(0, end).is_(_LABEL, _LIKELY)
    return None


def _north_american(candidate: Candidate) -> Finding | None:
    value = candidate.value
    digits = next((digits for _, digits in _ends(value, 10, 11)), "")
    label = _LABELS.before(candidate)
    if label:
        return candidate.is_(_LABEL, _CERTAIN, numbering_plans.valid_region("+1" + digits[-10:]))
    region = numbering_plans.valid_region("+1" + digits[-10:])
    has_extension = any(map(str.isalpha, value))
    if candidate.before[-1:] == "#" or (region is None and not has_extension):
        return None
    groups = value.split(" ")
    if len(groups) == 3 and all(group.isdigit() and int(group) % 4 == 0 for group in groups):
        return None  # sizes: 256 512 1024
    return candidate.is_(_LABEL, _LIKELY, region)


def _national(candidate: Candidate) -> Finding | None:
    value = candidate.value
    has_prefix = _TRUNK.match(value) is not None
    if _DATE.match(value) or _OTHER.match(value):
        return None
    if _SECONDS.match(value) and not _BESIDE.before(candidate):
        return None
    if _LABELS.before(candidate):
        longest = None
        for end, digits in _ends(value, 7, 15):
            longest = longest or (end, digits)
            if region := numbering_plans.national_region(digits):
                return candidate.part(0, _closed(value, end)).is_(_LABEL, _CERTAIN, region)
        if longest and len(longest[1]) <= 12:
            return candidate.part(0, longest[0]).is_(_LABEL, _LIKELY)
        return None
    if not has_prefix or _IN_NUMBER.search(candidate.before):
        return None
    for end, digits in _ends(value, 8, 13):
        if region := numbering_plans.national_region(digits):
            return candidate.part(0, _closed(value, end)).is_(_LABEL, _FORM, region)
    return None


def _closed(value: str, end: int) -> int:
    rest = re.match(_EXTENSION, value[end:])
    return end + (rest.end() if rest else 0)


INTERNATIONAL: Final = Expression(
    labels=frozenset({_LABEL}),
    pattern=(
        r"(?:^|[^a-z0-9+])(?P<value>\(?(?:\+|00) ?\(?[1-9](?:[ .()/-]{0,3}[0-9]){6,15}"
        rf"{_EXTENSION})(?:[^0-9a-z]|$)"
    ),
    judge=_international,
    longest=90,
)
NORTH_AMERICAN: Final = Expression(
    labels=frozenset({_LABEL}),
    # 555-0100 has no area code and is left alone
    pattern=(
        r"(?:^|[^a-z0-9.+#_-]|[a-z]\.)(?P<value>(?:1[ .-])?"
        r"(?:\([2-9][0-9]{2}\)[ .-]?|[2-9][0-9]{2}[ ./-])[2-9][0-9]{2}[ .-][0-9]{4}"
        rf"{_EXTENSION})(?:[^a-z0-9.#_-]|[.-](?:[^a-z0-9]|$)|$)"
    ),
    judge=_north_american,
    longest=50,
)
NATIONAL: Final = Expression(
    labels=frozenset({_LABEL}),
    pattern=(
        r"(?:^|[^a-z0-9.+#_/-]|[a-z][./])(?P<value>\(?[0-9](?:[ .()/-]{0,2}[0-9]){6,15}"
        rf"{_EXTENSION})(?:[^a-z0-9_-]|-(?:[^a-z0-9]|$)|$)"
    ),
    judge=_national,
    longest=75,
)
