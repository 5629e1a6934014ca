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

_PASSWORDS: Final = (
    *("password", "passwd", "passphrase", "passcode", "passwort", "kennwort", "mot de passe"),
    *("contraseña", "clave", "senha", "wachtwoord", "lösenord", "adgangskode", "salasana"),
    *("hasło", "heslo", "jelszó", "parolă", "пароль", "şifre", "parola", "κωδικός", "密码", "密碼"),
    *("パスワード", "비밀번호", "암호", "كلمة المرور", "סיסמה", "mật khẩu", "kata sandi"),
)
_NAMES: Final = "|".join(
    "[ _-]?".join(map(re2.escape, uncover(name).text.split(" "))) for name in _PASSWORDS
)
_KEYS: Final = (
    r"pwd|secret|credential|private[_ -]?key|api[_ -]?key|access[_ -]?key|access[_ -]?token"
    r"|auth[_ -]?token|token|db[_ -]?pass|user[_ -]?pass"
)
_REST: Final = r"""[A-Za-z0-9_-]{0,20}\\{0,3}["'\x60*]{0,3}"""
_OPERATOR: Final = (
    r"""[ \t]{0,3}(?::=|=>?|:|：|>|,|;|\||\t|[ \t](?:is|ist|lautet|est|es|é|är|was)[ \t:])"""
    r"""[*]{0,2}[ \t]{0,8}(?:[bru]?\\{0,3}["'\x60])?"""
)
_PAGES: Final = re.compile(
    r"(?i)(?:next|page|pagination|continuation|sync|cipher|public)[a-z_ -]*$"
)
_NAME: Final = re.compile(rf"(?i)(?:{_NAMES})[a-z0-9_-]*[\"'\x60*]* $")
_KEY_NAME: Final = re.compile(rf"(?i)(?:{_KEYS})[a-z0-9_-]*[^a-z0-9_-]*(?:is )?[^a-z0-9_-]*$")
_REFERENCE: Final = re.compile(
    r"\$\{|\{\{|\$\(|%\(|<|(?:[A-Za-z_]+\.)*[A-Za-z_]{3,}[(\[]|[/\\]|\.{1,2}/|~/|\w+://"
    r"|\$[A-Za-z_]+$|%[A-Za-z_]+%$|&[a-z]+;|\*+$|(?:\w+\.){2,}\w+$"
    r"|(?:self|os|env|this|config|settings|process|cfg|args)\.",
    re.IGNORECASE,
)
_WORDS: Final = re.compile(r"[A-Za-z]+(?:[-_.][A-Za-z]+|[-_.][0-9]{1,2})*$")
_SIGNS: Final = re.compile(r"[^A-Za-z0-9_]")
_LEAST_PASSWORD: Final = 6
_LEAST_KEY: Final = 8
_BITS, _KEY_BITS, _SIGN_BITS = 2.4, 2.75, 3.0


def _judge_password(candidate: Candidate) -> Finding | None:
    value, before = candidate.value, candidate.before
    is_quoted = before[-1:] in ("'", '"', "`")
    operator = before.rstrip(" \t'\"`\\bruBRU*")[-1:] if not before.endswith("\t") else "\t"
    if not is_quoted:
        if operator in ("|", ",", ";"):
            value = value.partition(operator)[0]
        value = re.split(r"&(?=\w+=)", value)[0].rstrip(",;.]}|:")
        value = value if "(" in value else value.rstrip(")")
    value = value.rstrip("\\")
    key = _KEY_NAME.search(before)
    if key is not None and _PAGES.search(before[: key.start()] + key[0].partition("oken")[0]):
        return None
    is_adjacent = operator.isalnum() and key is None
    if is_adjacent and not is_quoted and not _NAME.search(before):
        is_adjacent = False
    least = _LEAST_KEY if key is not None or is_adjacent else _LEAST_PASSWORD
    if len(value) < least or _REFERENCE.match(value) or _WORDS.match(value):
        return None
    if _is_secret(value, is_key=key is not None or is_adjacent):
        return candidate.part(0, len(value)).is_("PASSWORD", 0.8)
    return None


def _is_secret(value: str, *, is_key: bool) -> bool:
    """Whether a value is what people choose for a password, or what programs make for a key."""
    if len(set(value)) < 4:
        return False
    bits = bits_per_character(value)
    if has_letters_and_digits(value):
        return bits >= (_KEY_BITS if is_key else _BITS)
    signs = len(_SIGNS.findall(value))
    has_both = any(map(str.islower, value)) and any(map(str.isupper, value))
    return not is_key and signs > 0 and has_both and bits >= _SIGN_BITS


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
        rf"(?i:(?:{_NAMES}){_REST}(?:{_OPERATOR}| )|(?:{_KEYS}){_REST}(?:{_OPERATOR}))"
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
