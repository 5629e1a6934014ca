"""Keys without a form of their own, which the name of a vendor beside them tells (gitleaks)."""

from __future__ import annotations

import re
from functools import cache
from typing import Final

import re2

from classifiers.text.patterns.candidates import Candidate, Expression, Finding
from classifiers.text.patterns.recognizers.secrets import gitleaks
from classifiers.text.patterns.recognizers.secrets.entropy import (
    bits_per_character,
    has_letters_and_digits,
)

_AWS: Final = re.compile(r"[A-Za-z0-9/+]{40}")
_LEAST_BITS: Final = 3.0
_LEAST_AWS_BITS: Final = 4.0


@cache
def _vendors() -> tuple[str, ...]:
    names = {name for rule in gitleaks.named() for name in rule.names if len(name) > 3}
    return tuple(sorted({*names, "aws", "amazon"}))


@cache
def _rules_beside(name: str) -> tuple[gitleaks.Rule, ...]:
    return tuple(rule for rule in gitleaks.named() if name in rule.names)


def _judge_vendor(candidate: Candidate) -> Finding | None:
    value, before = candidate.value, candidate.before.lower()
    if not has_letters_and_digits(value):
        return None
    is_aws = ("aws" in before or "amazon" in before) and _AWS.fullmatch(value)
    if is_aws and bits_per_character(value) >= _LEAST_AWS_BITS:
        return candidate.is_("AWS_SECRET_KEY")
    for name in _vendors():
        if name in before:
            for rule in _rules_beside(name):
                is_it = gitleaks.compiled(rule.form).fullmatch(value)
                if is_it and bits_per_character(value) >= max(rule.entropy, _LEAST_BITS):
                    return candidate.is_("API_KEY")
    return None


VENDOR_KEYS: Final = Expression(
    labels=frozenset({"API_KEY", "AWS_SECRET_KEY"}),
    pattern=(
        rf"(?i:{'|'.join(map(re2.escape, _vendors()))})[ \tA-Za-z0-9_.-]{{0,30}}"
        r"""\\{0,3}["']?\s{0,3}(?::=|=>?|\?=|:|,|\|\||>)[\x60'"\s=\\]{0,5}"""
        r"""(?P<value>[A-Za-z0-9_.=:+/%~-]{12,256})(?:[^A-Za-z0-9_.=:+/%~-]|$)"""
    ),
    judge=_judge_vendor,
    longest=320,
    raw=True,
)
