"""The rules of gitleaks (`gitleaks.toml`, MIT), as its release has them.

There are two kinds. Tokens have a form of their own (`ghp_...`). Others are any hexadecimal digits
that a vendor's name stands beside (`datadog_api_key = ...`): their rules are one expression with
the names, and a table of the forms of the values.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Final

import re2

_OPERATOR: Final = r"""(?:=|>|:{1,3}=|\|\||:|=>|\?=|,)[\x60'"\s=]{0,5}"""
_TAIL: Final = r"""(?:[\x60'"\s;]|\\[nr]|$)"""
_WIDER_TAIL: Final = r"(?:[^A-Za-z0-9_-]|$)"
"""In prose a comma or a bracket may follow too."""
_OTHER: Final = frozenset(
    # what recognisers of their own read, or what is not in the token itself
    ("curl-auth-header", "curl-auth-user", "generic-api-key", "jwt", "jwt-base64", "pkcs12-file")
    + ("kubernetes-secret-yaml", "private-key", "nuget-config-password", "freemius-secret-key")
    + ("sourcegraph-access-token", "sidekiq-sensitive-url", "facebook-access-token")
)


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule: `form` is the expression of the token, or of the value beside one of `names`."""

    id: str
    form: str
    entropy: float
    names: tuple[str, ...] = ()


@cache
def tokens() -> tuple[Rule, ...]:
    """The rules of tokens with a form of their own."""
    return tuple(
        Rule(rule["id"], rule["regex"].replace(_TAIL, _WIDER_TAIL), float(rule.get("entropy", 0)))
        for rule in _rules()
        if _OPERATOR not in rule["regex"]
    )


@cache
def named() -> tuple[Rule, ...]:
    """The rules of values beside a vendor's name."""
    found = []
    for rule in _rules():
        _, operator, value = rule["regex"].partition(_OPERATOR)
        if operator:
            form = value.partition(_TAIL)[0]
            names = tuple(rule["keywords"])
            flags = "(?i)" if "(?i)" in rule["regex"] else ""
            found.append(Rule(rule["id"], flags + form, float(rule.get("entropy", 0)), names))
    return tuple(found)


@cache
def compiled(form: str) -> Any:
    """A form, compiled."""
    return re2.compile(form)


@cache
def _rules() -> list[dict[str, Any]]:
    source = resources.files("classifiers.text.patterns.recognizers.secrets") / "gitleaks.toml"
    rules = tomllib.loads(source.read_text(encoding="utf-8"))["rules"]
    return [rule for rule in rules if rule["id"] not in _OTHER]
