"""PRIVATE_KEY: private keys in PEM, PGP and PuTTY's form, as whole blocks.

A block may be indented, quoted, on one line, or without its end. The first line alone is no key.
"""

from __future__ import annotations

import re
from typing import Final

from classifiers.text.patterns.candidates import Candidate, Expression, Finding

_LONGEST: Final = 8192
_BETWEEN: Final = r"(?:\\{1,2}[rnt]|[\s\"'+,>#|;\\]){0,16}"
_WORD: Final = r"[^\s\\\"']{1,64}"
# a stream waits for what may be the header of a key: few words keep it short
_HEADER: Final = rf"(?:{_BETWEEN}[A-Z][A-Za-z0-9-]{{2,24}}:(?: {_WORD}){{0,6}})"
_LINE: Final = rf"(?:{_BETWEEN}[A-Za-z0-9+/=]{{24,}})"
_KEY: Final = r"[A-Z0-9 ]{0,30}PRIVATE KEY(?: BLOCK)?-----"
_BODY: Final = re.compile(r"[A-Za-z0-9+/=]{24,}")
_LABEL: Final = "PRIVATE_KEY"


def _judge(candidate: Candidate) -> Finding | None:
    value = candidate.value
    if "-----END" in value:
        return candidate.is_(_LABEL)
    body = _BODY.search(value)
    # words have no digits
    is_key = body is not None and any(map(str.isdigit, body[0])) and not body[0].islower()
    return candidate.is_(_LABEL) if is_key else None


BLOCKS: Final = Expression(
    labels=frozenset({_LABEL}),
    pattern=(
        rf"(?P<value>-----BEGIN {_KEY}{_HEADER}*{_LINE}*"
        rf"(?:(?:{_BETWEEN}[A-Za-z0-9+/=]{{1,64}}){{0,2}}{_BETWEEN}-----END {_KEY})?)"
    ),
    judge=_judge,
    longest=_LONGEST,
    raw=True,
    skips=True,
)
PUTTY: Final = Expression(
    labels=frozenset({_LABEL}),
    pattern=(
        rf"Private-Lines: ?[0-9]{{1,3}}(?P<value>{_LINE}+(?:{_BETWEEN}[A-Za-z0-9+/=]{{1,64}})?"
        r"(?:\s{1,4}Private-MAC: ?[0-9a-f]{1,64})?)"
    ),
    judge=None,
    longest=_LONGEST,
    raw=True,
    skips=True,
)
