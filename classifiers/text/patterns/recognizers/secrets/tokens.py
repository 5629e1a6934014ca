"""Keys and tokens whose form their issuers document: gitleaks' rules, and wider ones of our own."""

from __future__ import annotations

import re
from functools import cache
from typing import Final, NamedTuple

import re2

from classifiers.text.patterns.candidates import Candidate, Expression, Finding
from classifiers.text.patterns.expressions import SearchSet
from classifiers.text.patterns.recognizers.secrets import gitleaks
from classifiers.text.patterns.recognizers.secrets.entropy import (
    bits_per_character,
    has_letters_and_digits,
)

_FAMILIES: Final = (
    ("aws-access", "AWS_ACCESS_KEY"),
    ("github", "GITHUB_TOKEN"),
    ("gitlab", "GITLAB_TOKEN"),
    ("slack", "SLACK_TOKEN"),
    ("stripe", "STRIPE_KEY"),
    *((name, "LLM_API_KEY") for name in ("anthropic", "openai", "huggingface", "perplexity")),
    ("gcp", "GOOGLE_API_KEY"),
    *((name, "PACKAGE_TOKEN") for name in ("npm", "pypi", "rubygems", "clojars", "artifactory")),
    *((name, "MAIL_API_KEY") for name in ("sendgrid", "sendinblue", "mailgun", "mailchimp")),
    ("", "API_KEY"),
)


class _Rule(NamedTuple):
    label: str
    form: str
    entropy: float = 0.0


_WIDER: Final = (
    _Rule("AWS_ACCESS_KEY", r"^(?:AKIA|ASIA|ABIA|ACCA)[A-Z2-7]{16}(?:[^A-Za-z0-9]|$)"),
    _Rule("GITHUB_TOKEN", r"^(?:gh[pousr]_[A-Za-z0-9]{36,255}|github_pat_[A-Za-z0-9_]{22,255})"),
    _Rule("GITLAB_TOKEN", r"^gl(?:pat|dt|rt|ptt|ft)-[A-Za-z0-9_-]{20,64}"),
    _Rule(
        "SLACK_TOKEN",
        r"^(?:xox[abeoprs]-[0-9][A-Za-z0-9-]{9,250}|xapp-[0-9]-[A-Za-z0-9-]{20,250}"
        r"|https://hooks\.slack\.com/services/T[A-Z0-9]{6,12}/B[A-Z0-9]{6,12}/[A-Za-z0-9]{20,40})",
    ),
    _Rule("STRIPE_KEY", r"^(?:[sr]k_(?:live|test)_[A-Za-z0-9]{16,128}|whsec_[A-Za-z0-9]{24,64})"),
    # names of packages and classes begin with sk- too, but have no digit
    _Rule("LLM_API_KEY", r"^sk-(?:(?:ant|proj|svcacct|admin|or)-)?[A-Za-z0-9_-]{20,200}", 3.5),
    _Rule("LLM_API_KEY", r"^(?:hf_[A-Za-z0-9]{30,40}|gsk_[A-Za-z0-9]{40,64})", 3.5),
    _Rule("GOOGLE_API_KEY", r"^(?:AIza[A-Za-z0-9_-]{35}|GOCSPX-[A-Za-z0-9_-]{28})"),
    _Rule("PACKAGE_TOKEN", r"^(?:npm_[A-Za-z0-9]{36}|dckr_pat_[A-Za-z0-9_-]{27})"),
    _Rule("MAIL_API_KEY", r"^(?:SG\.[A-Za-z0-9_-]{22}\.[A-Za-z0-9_-]{43}|key-[0-9a-f]{32})"),
)
_PREFIXES: Final = (
    *("A3-", "A3T", "ABIA", "ABSK", "ACCA", "AGE-SECRET-KEY-1", "AIza", "AKCp", "AKIA", "API-"),
    *("ASIA", "CLOJARS_", "EAAA", "EAAC", "EAAM", "EZAK", "EZTK", "FLWPUBK_TEST", "FLWSECK_TEST"),
    *("GOCSPX-", "GR1348941", "HRKU-AA", "LTAI", "PMAK-", "SG.", "SK", "4b1d", "api_org_", "pat"),
    *("authress_", "bedrock-api-key-", "cmVmd", "dapi", "dckr_pat_", "doo_v1_", "dop_v1_", "sat."),
    *("dor_v1_", "dp.pt.", "dt0c01.", "duffel_", "ext_", "eyJrIjoi", "fio-u-", "fm1", "fm2_"),
    *("fo1_", "gho_", "ghp_", "ghr_", "ghs_", "ghu_", "github_pat_", "gl", "gsk_", "hf_", "hvb."),
    *("hvs.", "ico-", "key-", "lin_api_", "npm_", "ntn_", "ops_eyJ", "p8e-", "pnu_", "pplx-"),
    *("pscale_", "pul-", "pypi-AgEI", "rdme_", "rk_", "rubygems_", "s-s4t2", "sc_", "scauth_"),
    *("sha256~", "shippo_", "shp", "sk-", "sk_", "sm_", "sntry", "sq0atp-", "tk-us-", "v1.0-"),
    *("whsec_", "xapp", "xkeysib-", "xox", "https://hooks.slack.com/"),
)
_INNER: Final = (
    r"[A-Za-z0-9_~.]{3}[0-9]Q~",
    r"[A-Za-z0-9]{14}\.atlasv1\.",
    r"[A-Za-z0-9]{6}_[A-Za-z0-9]{29}_mmk",
    r"https://[a-z0-9]{1,60}\.webhook\.office\.com/",
)
_LEAST_CHARACTERS: Final = 12
_LETTERS: Final = re.compile(r"hf_(?=.*[a-z])(?=.*[A-Z])[A-Za-z]{34}$")
"""The older tokens of Hugging Face have no digit."""


def _label(rule: gitleaks.Rule) -> str:
    return next(label for prefix, label in _FAMILIES if rule.id.startswith(prefix))


@cache
def _rules() -> tuple[SearchSet, tuple[_Rule, ...]]:
    """All rules as one, and one by one."""
    rules = (*_WIDER, *(_Rule(_label(rule), rule.form, rule.entropy) for rule in gitleaks.tokens()))
    together = SearchSet([rule.form for rule in rules], raw=True)
    return together, rules


def _judge(candidate: Candidate) -> Finding | None:
    value = candidate.value
    if len(value) < _LEAST_CHARACTERS:
        return None
    together, rules = _rules()
    for index in together.matching(value.encode()):
        rule = rules[index]
        found = gitleaks.compiled(rule.form).search(value)
        if found is None:
            continue
        start, end = found.span(1 if found.re.groups and found.start(1) >= 0 else 0)
        while end > start and not (value[end - 1].isalnum() or value[end - 1] in "=_-"):
            end -= 1  # what only tells that the token ends
        token = value[start:end]
        if rule.entropy and bits_per_character(token) < rule.entropy:
            continue
        if token.startswith("hf_") and _LETTERS.match(token):
            return candidate.part(start, end).is_(rule.label)
        if rule.label == "LLM_API_KEY" and not has_letters_and_digits(token):
            continue
        return candidate.part(start, end).is_(rule.label)
    return None


TOKENS: Final = Expression(
    labels=frozenset(label for _, label in _FAMILIES),
    pattern=(
        rf"(?:^|[^A-Za-z0-9_]|\\[nrt])(?P<value>(?:{'|'.join(map(re2.escape, _PREFIXES))}"
        rf"|{'|'.join(_INNER)})[A-Za-z0-9_.~+/=@-]*)"
    ),
    judge=_judge,
    longest=2048,
    raw=True,
    skips=True,
)
