"""The numbering plans of all countries, as libphonenumber has them; read when first asked for."""

from __future__ import annotations

import re
from functools import cache, lru_cache
from typing import Any, Final

import phonenumbers
from phonenumbers import PhoneMetadata

from classifiers.text.patterns.expressions import full_match_set

_KEPT: Final = 4096
_SIGNS: Final = re.compile(r"[^0-9]+")


@lru_cache(_KEPT)
def valid_region(number: str) -> str | None:
    """The region of a valid international number ("+49301234567"), or None. A number that belongs
    to no one country gives "001"."""
    try:
        parsed = phonenumbers.parse(number, None)
    except phonenumbers.NumberParseException:
        return None
    return phonenumbers.region_code_for_number(parsed)


@lru_cache(_KEPT)
def is_possible(number: str) -> bool:
    """Whether an international number has the length of one."""
    try:
        return phonenumbers.is_possible_number(phonenumbers.parse(number, None))
    except phonenumbers.NumberParseException:
        return False


def national_region(digits: str) -> str | None:
    """A region in which these digits are a valid national number, or None."""
    indexes = _numbers().Match(digits.encode())
    return _regions()[indexes[0]] if indexes else None


def written_as_in(number: str, digits: str) -> str | None:
    """A region that writes a valid national number in these groups, or None."""
    if national_region(digits) is None:
        return None
    formats, regions = _formats()
    indexes = formats.Match(_SIGNS.sub(" ", number).strip().encode())
    return regions[indexes[0]] if indexes else None


@cache
def _regions() -> list[str]:
    return sorted(phonenumbers.SUPPORTED_REGIONS)


@cache
def _numbers() -> Any:
    plans = (PhoneMetadata.metadata_for_region(region) for region in _regions())
    return full_match_set(map(_number, plans), raw=True)


def _number(plan: Any) -> str:
    prefix = plan.national_prefix or ""
    return f"(?:{prefix})?(?:{plan.general_desc.national_number_pattern})"


@cache
def _formats() -> tuple[Any, list[str]]:
    patterns, regions = [], []
    for region in _regions():
        plan: Any = PhoneMetadata.metadata_for_region(region)
        if plan.national_prefix != "0":
            continue
        for each in plan.number_format:
            if each.national_prefix_formatting_rule:
                groups = " ".join(re.findall(r"\(([^()]+)\)", each.pattern))
                patterns.append("0 ?" + groups)
                regions.append(region)
    return full_match_set(patterns, raw=True), regions
