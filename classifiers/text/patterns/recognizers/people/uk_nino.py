"""UK_NINO: national insurance numbers of the United Kingdom."""

from __future__ import annotations

from typing import Final

from classifiers.text.patterns.candidates import Candidate, Expression, Finding
from classifiers.text.patterns.recognizers.labels import Labels

_LABELS: Final = Labels("nino", "ni number", "ni no", "national insurance", "nationalinsurance")
_UNUSED: Final = frozenset({"BG", "GB", "NK", "KN", "TN", "NT", "ZZ"})
"""Prefixes that are not given out (HMRC, NIM39110)."""


def _judge(candidate: Candidate) -> Finding | None:
    value = candidate.value
    if value[:2].upper() in _UNUSED:
        return None
    if _LABELS.before(candidate):
        return candidate.is_("UK_NINO", 1.0, "GB")
    # small letters are part of a digest
    return candidate.is_("UK_NINO", 0.8, "GB") if value.isupper() else None


UK_NINO: Final = Expression(
    labels=frozenset({"UK_NINO"}),
    pattern=(
        r"(?i)(?:^|[^a-z0-9])(?P<value>[a-ceghj-prstw-z][a-ceghj-nprstw-z](?:[ -]?[0-9]{2}){3}"
        r"[ -]?[a-d])(?:[^a-z0-9]|$)"
    ),
    judge=_judge,
    longest=13,
    raw=True,
)
