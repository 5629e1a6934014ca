"""Checks of the matches of a regular expression: checksums and other tests beyond expressions.

A check takes the matched text and accepts or refuses it; `CHECKS` has those that a list may name.
"""

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
"""Length of an account number in characters, by country (SWIFT, IBAN registry)."""


def luhn(match: str) -> bool:
    """Whether the digits pass the check of payment cards (ISO/IEC 7812-1, annex B)."""
    digits = [int(char) for char in match if char in string.digits]
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[-2::-2]]
    return len(set(digits)) > 1 and (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


def iban(match: str) -> bool:
    """Whether the length is that of the country and the check of ISO 13616 (modulo 97) holds."""
    account = "".join(filter(str.isalnum, match)).upper()
    if len(account) != _IBAN_LENGTHS.get(account[:2]) or not account.isascii():
        return False
    return int("".join(str(int(char, 36)) for char in account[4:] + account[:4])) % 97 == 1


def ipv4(match: str) -> bool:
    """Whether an IPv4 address may belong to a person: four numbers up to 255, not all of one digit.

    Addresses of networks, masks, loopback and multicast belong to nobody; 1.2.3.4 is more often a
    version.
    """
    try:
        address = ipaddress.IPv4Address(match)
    except ValueError:
        return False
    reserved = address.is_loopback or address.is_multicast or address.is_reserved
    host = address.packed[-1] not in (0, 255)
    return host and not reserved and any(len(number) > 1 for number in match.split("."))


def bits_per_character(text: str) -> float:
    """The entropy of the characters, from their frequencies in the text itself."""
    counts = Counter(text).values()
    return -sum(count / len(text) * math.log2(count / len(text)) for count in counts)


def _entropy(least: float) -> Check:
    return lambda match: bits_per_character(match) >= least


def _password(least: float) -> Check:
    # Names of variables and words of a sentence have letters alone.
    return lambda match: (
        any(map(str.isdigit, match))
        and any(map(str.isalpha, match))
        and bits_per_character(match) >= least
    )


CHECKS: Final[Mapping[str, Callable[[float], Check]]] = {
    "luhn": lambda _: luhn,
    "iban": lambda _: iban,
    "ipv4": lambda _: ipv4,
    "entropy": _entropy,
    "password": _password,
}
"""Checks by name. Each is made from the least bits per character, which the last two need."""
