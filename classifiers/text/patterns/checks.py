"""Checks of what a regular expression found: checksums and the like, which no expression can do."""

from __future__ import annotations

import ipaddress
import math
import string
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Final

Check = Callable[[str], bool]

_COUNTRIES: Final = """
15:NO 16:BE 18:DK,FI,FO,GL,NL 19:MK,SI 20:AT,BA,EE,KZ,LT,LU,XK 21:CH,HR,LI,LV
22:BG,BH,CR,DE,GB,GE,IE,ME,RS,VA 23:AE,GI,IL,IQ,TL 24:AD,CZ,ES,MD,PK,RO,SA,SE,SK,TN,VG
25:LY,PT,ST 26:IS,TR 27:FR,GR,IT,MC,MR,SM 28:AL,AZ,BY,CY,DO,GT,HU,LB,LC,PL,SV
29:BR,EG,PS,QA,UA 30:JO,KW,MU 31:MT,SC
"""
_IBAN_LENGTHS: Final = {
    country: int(length)
    for length, _, countries in (entry.partition(":") for entry in _COUNTRIES.split())
    for country in countries.split(",")
}
"""Characters of an account number by country (SWIFT, IBAN registry)."""


def luhn(found: str) -> bool:
    """Whether the digits of it pass the check of payment cards (ISO/IEC 7812-1, annex B)."""
    digits = [int(char) for char in found if char in string.digits]
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[-2::-2]]
    return len(set(digits)) > 1 and (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


def iban(found: str) -> bool:
    """Whether it has its country's length and passes the check of ISO 13616 (modulo 97)."""
    account = "".join(filter(str.isalnum, found)).upper()
    if len(account) != _IBAN_LENGTHS.get(account[:2]) or not account.isascii():
        return False
    return int("".join(str(int(char, 36)) for char in account[4:] + account[:4])) % 97 == 1


def ipv4(found: str) -> bool:
    """Whether it is an address that may be someone's: four numbers up to 255, not all of a digit.

    Those of networks, masks, loopback and multicast are nobody's; 1.2.3.4 is more often a version.
    """
    try:
        address = ipaddress.IPv4Address(found)
    except ValueError:
        return False
    nobodys = address.is_loopback or address.is_multicast or address.is_reserved
    host = address.packed[-1] not in (0, 255)
    return host and not nobodys and any(len(number) > 1 for number in found.split("."))


def bits_per_character(text: str) -> float:
    """The entropy of the text's characters, as they are counted in it."""
    counts = Counter(text).values()
    return -sum(count / len(text) * math.log2(count / len(text)) for count in counts)


def _entropy(least: float) -> Check:
    return lambda found: bits_per_character(found) >= least


def _password(least: float) -> Check:
    # Names of variables and words of a sentence have no digit beside their letters.
    return lambda found: (
        any(map(str.isdigit, found))
        and any(map(str.isalpha, found))
        and bits_per_character(found) >= least
    )


CHECKS: Final[Mapping[str, Callable[[float], Check]]] = {
    "luhn": lambda _: luhn,
    "iban": lambda _: iban,
    "ipv4": lambda _: ipv4,
    "entropy": _entropy,
    "password": _password,
}
"""By name; what "entropy" and "password" take is the least number of bits per character."""
