"""NATIONAL_ID: numbers that states give to people, with the rules of each country from stdnum.

A number counts behind a label; without one where its form is seldom anything else.
"""

from __future__ import annotations

import re
from functools import cache
from importlib import import_module
from typing import Any, Final

from classifiers.text.patterns.candidates import Candidate, Expression, Finding
from classifiers.text.patterns.recognizers.labels import Labels, folded
from classifiers.text.patterns.recognizers.people.libraries import answer
from classifiers.text.patterns.recognizers.people.national_forms import FORMS, GENERIC, Form

_LABELS: Final = Labels(*GENERIC, *(label for form in FORMS for label in form.labels))
_BY_LABEL: Final[dict[str, list[Form]]] = {}
for _form in FORMS:
    for _label in folded(_form.labels):
        _BY_LABEL.setdefault(_label.replace("-", " "), []).append(_form)
_SIGNS: Final = re.compile(r"[_ -]+")
_END: Final = r"(?![0-9a-z])"
_COMPILED: Final = {form: re.compile(f"(?:{form.pattern}){_END}") for form in FORMS}
_ALONE: Final = {
    form: re.compile(f"(?:{form.alone}){_END}") for form in FORMS if form.alone is not None
}
_ANY_ALONE: Final = re.compile("|".join(f"(?:{form.alone})" for form in _ALONE))


@cache
def _rules(module: str) -> Any:
    return import_module(f"stdnum.{module}")


def _judge(candidate: Candidate) -> Finding | None:
    label = _LABELS.before(candidate)
    if label is not None:
        named = _BY_LABEL.get(_SIGNS.sub(" ", label))
        found = [_as(form, _COMPILED[form], candidate) for form in named or FORMS]
        findings = [finding for finding in found if finding is not None]
        if findings:
            return max(findings, key=lambda finding: finding.end)
    if not _ANY_ALONE.match(candidate.text, candidate.start, candidate.end):
        return None
    if candidate.before[-1:] in ("/", "#"):
        return None  # a part of an address, or of a reference
    return next((f for form in _ALONE if (f := _as(form, _ALONE[form], candidate))), None)


def _as(form: Form, pattern: re.Pattern[str], candidate: Candidate) -> Finding | None:
    found = pattern.match(candidate.text, candidate.start, candidate.end + 1)
    if found is None or not answer(_rules(form.module).is_valid, found[0]):
        return None
    confidence = 0.8 if pattern is _ALONE.get(form) else 1.0
    return candidate.part(0, found.end() - candidate.start).is_(
        "NATIONAL_ID", confidence, form.country
    )


NATIONAL_NUMBERS: Final = Expression(
    labels=frozenset({"NATIONAL_ID"}),
    pattern=(
        r"(?:^|[^a-z0-9.-]|[^a-z0-9][.-])(?P<value>[0-9](?:[ ./+-]?[0-9]){6,17}"
        r"(?:[ ./+-]?[0-9a-z]){0,4}|[a-z]{1,6}-?[0-9][0-9a-z-]{6,16}"
        r"|[0-9]{6}[-+a-y][0-9]{3}[0-9a-y])(?:[^a-z0-9]|$)"
    ),
    judge=_judge,
    longest=48,
)
