"""US_SSN: social security numbers of the United States."""

from __future__ import annotations

from typing import Final

from stdnum.us import ssn

from classifiers.text.patterns.candidates import Candidate, Expression, Finding
from classifiers.text.patterns.recognizers.labels import Labels
from classifiers.text.patterns.recognizers.people.libraries import answer

_LABELS: Final = Labels(
    *("ssn", "ssns", "social security", "social sec", "soc sec", "soc. sec", "ss#", "ss number"),
    *("ss no", "socialsecurity", "taxpayer", "tin"),
)
_PUBLISHED: Final = frozenset({"078051120", "457555462", "219099999"})
"""Real ones that were printed in advertisements, which the library refuses."""


def _judge(candidate: Candidate) -> Finding | None:
    value = candidate.value
    digits = "".join(filter(str.isdigit, value))
    if digits not in _PUBLISHED and not answer(ssn.is_valid, digits):
        return None
    if _LABELS.before(candidate):
        return candidate.is_("US_SSN", 1.0, "US")
    separators = {char for char in value if not char.isdigit()}
    before, behind = candidate.before[-1:], candidate.following
    if not separators or separators == {"."} or before in ("#", ".", "_") or behind.isalpha():
        return None
    return candidate.is_("US_SSN", 0.8, "US")


US_SSN: Final = Expression(
    labels=frozenset({"US_SSN"}),
    pattern=(
        r"(?:^|[^a-z0-9-]|[^a-z0-9]-|[a-z][:#])"
        r"(?P<value>[0-9]{3}(?:-[0-9]{2}-| [0-9]{2} |\.[0-9]{2}\.|[0-9]{2})[0-9]{4})"
        r"(?:[^0-9#_-]|-(?:[^a-z0-9]|$)|$)"
    ),
    judge=_judge,
    longest=11,
)
