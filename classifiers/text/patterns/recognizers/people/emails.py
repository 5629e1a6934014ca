"""EMAIL: addresses whose domain ends as domains do, by the public suffix list."""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING, Final

from classifiers.text.patterns.candidates import Candidate, Expression, Finding

if TYPE_CHECKING:
    from publicsuffixlist import PublicSuffixList

_RESERVED: Final = frozenset({"example", "test", "invalid", "local", "internal", "lan", "corp"})
"""Top-level domains that no list has, and that addresses in private networks and tests end with."""
_UNITS: Final = frozenset(
    ("service", "socket", "device", "mount", "automount", "swap", "target", "path", "timer")
    + ("slice", "scope")
)
_LONGEST_DOMAIN: Final = 253
_SIZE: Final = re.compile(r"[0-9]{1,2}x$")
_IN_ADDRESS: Final = re.compile(r"[a-z][a-z0-9+.-]*://[^\s/?#@]*$")
_LABEL: Final = re.compile(r"(?!-)[^.]{1,63}(?<!-)$")
_AT: Final = re.compile(r" ?(?:@|[\[({] ?at ?[\])}]) ?")
_DOT: Final = re.compile(r" ?[\[({] ?dot ?[\])}] ?")


@cache
def _suffixes() -> PublicSuffixList:
    from publicsuffixlist import PublicSuffixList

    return PublicSuffixList(accept_unknown=False)


def _is_domain(domain: str) -> bool:
    first, _, last = domain.rpartition(".")
    if not first or (last in _UNITS and "." not in first):
        return False  # name@instance.service
    if not all(_LABEL.match(label) for label in first.split(".")):
        return False
    if _SIZE.match(first):
        return False  # logo@2x.png
    return last in _RESERVED or _suffixes().publicsuffix(domain) is not None


def _judge(candidate: Candidate) -> Finding | None:
    value = candidate.value
    at = _AT.search(value)
    if at is None:
        return None
    local, domain = value[: at.start()], value[at.end() :]
    if ".." in local or local.endswith(".") or _IN_ADDRESS.search(candidate.before):
        return None
    behind = candidate.text[candidate.end : candidate.end + 2]
    if local == "git" or (behind[:1] == ":" and behind[1:] in "/~" and behind[1:]):
        return None  # git@host:path
    if len(domain) > _LONGEST_DOMAIN:
        return None
    while domain:
        domain = domain.rstrip(".-_")
        if _is_domain(_DOT.sub(".", domain)):
            end = at.end() + len(domain)
            return candidate.part(0, end).is_("EMAIL", 1.0 if "@" in value else 0.8)
        # the end of a sentence without a space, or a name behind the domain
        domain = domain[: max(0, *map(domain.rfind, ".-_"))]
    return None


EMAILS: Final = Expression(
    labels=frozenset({"EMAIL"}),
    pattern=(
        r"(?:^|[^a-z0-9])(?P<value>[a-z0-9](?:[a-z0-9._%+'-]{0,62}[a-z0-9_%+-])?"
        r"(?:@| @ | ?[\[({] ?(?:at|@) ?[\])}] ?)"
        r"(?:[a-z0-9._\x80-\x{10ffff}-]| ?[\[({] ?dot ?[\])}] ?)+)(?::[/~])?"
    ),
    judge=_judge,
    longest=_LONGEST_DOMAIN + 80,
)
