"""Values that a name beside them makes a secret: passwords, and keys of vendors (gitleaks)."""

from __future__ import annotations

import re
from functools import cache
from typing import Final

import re2  # type: ignore[import-untyped]

from classifiers.text.disguises.folding import uncover
from classifiers.text.patterns.candidates import Candidate, Expression, Finding
from classifiers.text.patterns.recognizers.secrets import gitleaks
from classifiers.text.patterns.recognizers.secrets.entropy import (
    bits_per_character,
    has_letters_and_digits,
)

_NAMES: Final = (
    *("password", "passwd", "passphrase", "passcode", "passwort", "kennwort", "mot de passe"),
    *("contraseña", "clave", "senha", "wachtwoord", "lösenord", "adgangskode", "salasana"),
    *("hasło", "heslo", "jelszó", "parolă", "пароль", "şifre", "parola", "κωδικός", "密码", "密碼"),
    *("パスワード", "비밀번호", "암호", "كلمة المرور", "סיסמה", "mật khẩu", "kata sandi"),
)
_OTHER_NAMES: Final = (
    r"pwd|secret|credential|private[_ -]?key|api[_ -]?key|apikey|access[_ -]?key|access[_ -]?token"
    r"|auth[_ -]?token|client[_ -]?secret|secret[_ -]?key|token|db[_ -]?pass|user[_ -]?pass"
)
_OPERATOR: Final = (
    r"""[A-Za-z0-9_-]{0,20}\\{0,3}["'\x60]?[ \t]{0,3}"""
    r"""(?::=|=>?|:|：|>|,|\||[ \t](?:is|ist|lautet|est|es|é|är|was)[ \t:])"""
    r"""[ \t]{0,8}(?:[bru]?\\{0,3}["'\x60])?"""
)
_REFERENCE: Final = re.compile(
    r"[$<({\[%&*@]|[A-Za-z_][\w.]*[(\[]|(?:self|os|env|this|config|settings|process|cfg|args)\."
    r"|/|\./|~/|\w+://|(?:none|null|true|false|undefined|required|optional|str|string)\b",
    re.IGNORECASE,
)
_WORDS: Final = re.compile(r"[A-Za-z]+(?:[-_.][A-Za-z]+|[-_.][0-9]{1,2})*$")
_SHORT_PASSWORD, _BITS = 6, 2.4
_MANY_BITS: Final = 3.3
_STRICT: Final = re.compile(
    r"(?i)(?:token|key|secret|credential)[^=:>]*[=:>,|]|(?:token|key|secret) is"
)
_DIGEST: Final = re.compile(r"(?:[0-9a-f]{32}|[0-9a-f]{40}|[0-9a-f]{64})$")


def _judge_password(candidate: Candidate) -> Finding | None:
    value = candidate.value
    quote = candidate.before[-1:]
    is_quoted = quote in ("'", '"', "`")
    if not is_quoted:
        value = re.split(r"&(?=\w+=)", value)[0].rstrip(",;.)]}|:")
    value = value.rstrip("\\")
    is_strict = _STRICT.search(candidate.before[-40:]) is not None
    if len(value) < (8 if is_strict else _SHORT_PASSWORD) or _REFERENCE.match(value):
        return None
    if _WORDS.match(value) or len(set(value)) < 4:
        return None
    kinds = (
        any(map(str.islower, value)) + any(map(str.isupper, value)) + any(map(str.isdigit, value))
    ) + (not value.isalnum())
    bits = bits_per_character(value)
    if has_letters_and_digits(value):
        is_secret = bits >= (2.75 if is_strict else _BITS)
    else:
        is_secret = kinds >= 3 and bits >= _MANY_BITS and not is_strict
    if not is_secret:
        return None
    return candidate.part(0, len(value)).is_("PASSWORD", 0.8)


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
    bits = bits_per_character(value)
    if ("aws" in before or "amazon" in before) and _AWS.fullmatch(value) and bits >= 4.0:
        return candidate.is_("AWS_SECRET_KEY")
    for name in _vendors():
        if name in before:
            for rule in _rules_beside(name):
                is_it = gitleaks.compiled(rule.form).fullmatch(value)
                if is_it and bits >= max(rule.entropy, 3.0):
                    return candidate.is_("API_KEY")
    return None


_AWS: Final = re.compile(r"[A-Za-z0-9/+]{40}")
PASSWORDS: Final = Expression(
    labels=frozenset({"PASSWORD"}),
    pattern=(
        rf"(?i:{'|'.join(re2.escape(uncover(name).text) for name in _NAMES)}|{_OTHER_NAMES})"
        rf"(?:{_OPERATOR})"
        r"""(?P<value>[^\s"'\x60<>]{6,128})"""
    ),
    judge=_judge_password,
    longest=200,
    raw=True,
)
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
