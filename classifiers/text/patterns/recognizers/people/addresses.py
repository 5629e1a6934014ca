"""IP_ADDRESS: addresses of IPv4 and IPv6 that may be somebody's."""

from __future__ import annotations

import ipaddress
import re
from typing import Final

from classifiers.text.patterns.candidates import Candidate, Expression, Finding

_VERSION: Final = re.compile(
    r"(?:version|release|build|firmware|driver|\b(?:rfc|oid|upgrade|update|bump|v(?:er)?\.?))[ds]?"
    r"[ :=v\"']{0,5}(?:[a-z0-9]+ )?(?:to )?$|(?:section|chapter|figure|table|clause) {1,2}$"
    r"|[a-z0-9_-](?:/|==|>=|<=|~=|!=|@)v?$|windows nt $"
)
_ROUTED: Final = tuple(ipaddress.ip_network(net) for net in ("2000::/3", "fc00::/7", "fe80::/10"))


def is_someones(address: ipaddress.IPv4Address) -> bool:
    """Whether an IPv4 address may be a host's: no network, mask, loopback or multicast."""
    reserved = address.is_loopback or address.is_multicast or address.is_reserved
    return address.packed[-1] not in (0, 255) and not (reserved or address.is_link_local)


def ipv4(match: str) -> bool:
    """Whether an IPv4 address may belong to a person: 1.2.3.4 is more often a version."""
    try:
        address = ipaddress.IPv4Address(match)
    except ValueError:
        return False
    return is_someones(address) and any(len(number) > 1 for number in match.split("."))


def _judge_v4(candidate: Candidate) -> Finding | None:
    if not ipv4(candidate.value) or _VERSION.search(candidate.before):
        return None
    return candidate.is_("IP_ADDRESS")


def _judge_v6(candidate: Candidate) -> Finding | None:
    value = candidate.value
    end = len(value.rstrip(":."))
    if value[:end].count(":") < 2 or (value[end:] == "::" or candidate.following.isalnum()):
        return None  # too little, or a network
    try:
        address = ipaddress.IPv6Address(value[:end])
    except ValueError:
        return None
    groups = value[:end].split(":")
    if len(groups) == 8 and all(len(group) == 2 for group in groups):
        return None  # an identifier of hardware
    mapped = address.ipv4_mapped
    if mapped is not None:
        known = is_someones(mapped)
    else:
        known = any(address in network for network in _ROUTED) and len(groups) > 3
    return candidate.part(0, end).is_("IP_ADDRESS") if known else None


IPV4: Final = Expression(
    labels=frozenset({"IP_ADDRESS"}),
    pattern=(
        r"(?:^|[^a-z0-9._-]|[_-])(?P<value>[0-9]{1,3}(?:\.[0-9]{1,3}){3})"
        r"(?:[^a-z0-9._-]|[.-](?:[^a-z0-9]|$)|$)"
    ),
    judge=_judge_v4,
    longest=15,
)
IPV6: Final = Expression(
    labels=frozenset({"IP_ADDRESS"}),
    pattern=(
        r"(?:^|[^a-z0-9:.])(?P<value>[0-9a-f]{0,4}:[0-9a-f]{0,4}:[0-9a-f:]{0,34}"
        r"(?:(?:\.[0-9]{1,3}){3})?)"
    ),
    judge=_judge_v6,
    longest=60,
)
