"""The numbering plans of all countries, as libphonenumber has them; read when first asked for."""

from __future__ import annotations

from functools import cache, lru_cache
from typing import Any, Final

import phonenumbers
from phonenumbers import PhoneMetadata

from classifiers.text.patterns.expressions import full_match_set
from classifiers.text.patterns.recognizers.people.libraries import answer

_KEPT: Final = 4096


@lru_cache(_KEPT)
def valid_region(number: str) -> str | None:
    """The region of a valid international number ("+49301234567"), or None. A number that belongs
    to no one country gives "001"."""
    parsed = answer(phonenumbers.parse, number, None)
    return None if parsed is None else answer(phonenumbers.region_code_for_number, parsed)


@lru_cache(_KEPT)
def is_possible(number: str) -> bool:
    """Whether an international number has the length of one."""
    parsed = answer(phonenumbers.parse, number, None)
    return parsed is not None and bool(answer(phonenumbers.is_possible_number, parsed))


def national_region(digits: str) -> str | None:
    """A region in which these digits are a valid national number, or None."""
    indexes = _numbers().Match(digits.encode())
    return _regions()[indexes[0]] if indexes else None


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
