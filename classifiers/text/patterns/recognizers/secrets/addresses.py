"""PASSWORD in an address (scheme://user:password@host), or in Base64 as registries keep it, and
tokens of an Authorization header."""

from __future__ import annotations

import base64
import re
from typing import Final

from classifiers.text.patterns.candidates import Candidate, Expression, Finding
from classifiers.text.patterns.recognizers.secrets.entropy import (
    bits_per_character,
    has_letters_and_digits,
)

_PLACEHOLDER: Final = re.compile(
    r"(?:pass(?:word|wd)?|pwd|secret|token|x+|\*+|\.+|your[-_ ]?\w*|my[-_]?pass(?:word)?|port"
    r"|example)$|[$<{\[%]",
    re.IGNORECASE,
)

_SHORTEST: Final = 3


def judge_password(candidate: Candidate) -> Finding | None:
    """A password where one must stand, unless it is a placeholder."""
    return None if _PLACEHOLDER.match(candidate.value) else candidate.is_("PASSWORD")


def _judge_credentials(candidate: Candidate) -> Finding | None:
    """Whether it is the Base64 of user:password."""
    try:
        decoded = base64.b64decode(candidate.value, validate=True).decode()
    except ValueError:
        return None
    user, _, password = decoded.partition(":")
    is_told = user and len(password) >= _SHORTEST and decoded.isprintable()
    return candidate.is_("PASSWORD") if is_told and not _PLACEHOLDER.match(password) else None


def _judge_token(candidate: Candidate) -> Finding | None:
    value = candidate.value
    if not has_letters_and_digits(value) or bits_per_character(value) < 3.0:
        return None
    return candidate.is_("ACCESS_TOKEN")


CREDENTIALS: Final = Expression(
    labels=frozenset({"PASSWORD"}),
    pattern=r"""["'_]auth["']? ?[:=] ?["']?(?P<value>[A-Za-z0-9+/]{8,256}={0,2})""",
    judge=_judge_credentials,
    longest=280,
    raw=True,
)
URL_PASSWORDS: Final = Expression(
    labels=frozenset({"PASSWORD"}),
    pattern=(
        r"""[a-zA-Z][a-zA-Z0-9+.-]{1,20}://[^\s:/@"'<>]{0,64}:"""
        r"""(?P<value>[^\s/@"'<>]{3,128})@[A-Za-z0-9\[]"""
    ),
    judge=judge_password,
    longest=240,
    raw=True,
)
HEADERS: Final = Expression(
    labels=frozenset({"ACCESS_TOKEN"}),
    pattern=(
        r"""(?i:authorization["']{0,2} ?[:=,] ?["']?(?:basic|bearer|token|digest|apikey) {1,2}|"""
        r"""authorization["']{0,2} ?[:=] ?["']?|bearer {1,2}"""
        r"""|x-(?:api-key|auth-token|access-token)["']? ?[:=] ?["']?)"""
        r"""(?P<value>[A-Za-z0-9._~+/-]{16,}={0,2})"""
    ),
    judge=_judge_token,
    longest=4096,
    raw=True,
    skips=True,
)
