"""PASSWORD: values that a name before them makes a secret."""

from __future__ import annotations

import re
from typing import Final

import re2

from classifiers.text.disguises.folding import uncover
from classifiers.text.patterns.candidates import Candidate, Expression, Finding
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
    ["[ _-]?".join(map(re2.escape, uncover(name).text.split(" "))) for name in _PASSWORDS]
    + ["db[_ -]?pass", "user[_ -]?pass"]
)
_KEYS: Final = (
    r"pwd|secret|credential|(?:private|account|api|access)[_ -]?key|(?:access|auth)[_ -]?token"
    r"|token"
)
_REST: Final = r"""[A-Za-z0-9_-]{0,20}\\{0,3}["'\x60*]{0,3}"""
_OPERATOR: Final = (
    r"""(?:[ \t]{0,3}(?::=|=>?|:|：|>|[ \t]\||[ \t](?:is|ist|lautet|est|es|é|är|was)[ \t:])"""
    r"""(?:[*]{1,2}[ \t]{1,8}|[ \t]{0,8})(?:[bru]?\\{0,3}["'\x60])?|[,;|\t]["']?)"""
)
_PAGES: Final = re.compile(
    r"(?i)(?:next|page|pagination|continuation|sync|cipher|public)[a-z_ -]*$"
    r"|secretsmanager:[a-z0-9:-]*$"
)
"""Tokens of pages, ciphertexts and names of secrets are none."""
_DETAILS: Final = "id|name|file|path|url|uri|arn|version|type|length|count|ttl"
_BEHIND: Final = r"[^A-Za-z0-9]*(?:is )?[^A-Za-z0-9]*$"
_OF_DETAIL: Final = re.compile(
    rf"(?i:tokeni[sz])|(?i:[_-](?:{_DETAILS})){_BEHIND}"
    rf"|[a-z](?:{'|'.join(map(str.capitalize, _DETAILS.split('|')))}|ID|URL){_BEHIND}"
)
"""The id or the name of a key is not the key."""
_NAME: Final = re.compile(rf"(?i)(?:{_NAMES})[a-z0-9_-]*[\"'\x60*]* $")
_KEY_NAME: Final = re.compile(rf"(?i)(?:{_KEYS})[a-z0-9_-]*[^a-z0-9_-]*(?:is )?[^a-z0-9_-]*$")
_REFERENCE: Final = re.compile(
    r"\$\{|\{\{|\$\((?:[a-z_][\w./-]*)?(?:\)(?!\w)|$)|%\(\w+\)|<|(?:true|false|none|null)\b|[/\\]"
    r"|\.{1,2}/|~/|\w+://"
    r"|\$[A-Za-z_]+$|%[A-Za-z_]+%$|&[a-z]+;|\*+$|(?:\w+\.){2,}\w+$"
    r"|(?:self|os|env|this|config|settings|process|cfg|args)\.",
    re.IGNORECASE,
)
_CONSTANT: Final = re.compile(r"[\[<{(]{0,2}[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+[\]>})]{0,2}$")
"""The name of a constant, or a placeholder of what was cut out."""
_PART: Final = r"(?:[A-Z]?[a-z]{2,}|[A-Z]{2,})"
_CALL: Final = re.compile(
    rf"(?:[A-Za-z_]+\.)*(?=[A-Za-z_]{{3}})_*{_PART}(?:_*{_PART})*_*[(\[]"
    r"(?!.*(?:[)\]][A-Za-z0-9]|[@#$!?^~]))"
)
"""Names in programs are made of words; behind a bracket that closes, code has a sign."""
_BOLD: Final = re.compile(r"(\*{1,2})([^*]+)\1")
_WORDS: Final = re.compile(r"[A-Za-z]+(?:[-_.][A-Za-z]+|[-_.][0-9]{1,2})*$")
_IDENTIFIER: Final = re.compile(
    r"(?:[A-Z][a-z]{2,}[0-9_]{0,3}){2,}(?:$|\()|[0-9a-z]{7,8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}$"
)
"""Names of classes, and identifiers of requests."""
_SIGNS: Final = re.compile(r"[^A-Za-z0-9_]")
_NEXT_FIELD: Final = re.compile(r"[&;](?=[\w.-]+=)")
_LEAST, _LEAST_STRICT = 6, 8
_QUOTES: Final = ("'", '"', "`")
_BITS, _MIXED_BITS, _STRICT_BITS, _SIGN_BITS = 2.4, 2.0, 2.75, 3.0


def _judge(candidate: Candidate) -> Finding | None:
    candidate, before = _value(candidate), candidate.before
    value = candidate.value
    key = _KEY_NAME.search(before)
    if key is not None:
        end = key.start() if key[0].lower().startswith("token") else key.end()
        if value[:1] in ("[", "(") or _PAGES.search(before[:end]) or _OF_DETAIL.search(key[0]):
            return None
    # nothing but a space may stand between the name of a password and the password
    is_adjacent = _NAME.search(before) is not None
    is_strict = key is not None
    least = _LEAST_STRICT if is_strict or is_adjacent else _LEAST
    if len(value) < least or any(form.match(value) for form in (_REFERENCE, _WORDS, _CONSTANT)):
        return None
    if before[-1:] not in _QUOTES and _CALL.match(value):
        return None
    if is_strict and _IDENTIFIER.match(value):
        return None
    if is_adjacent and not has_letters_and_digits(value):
        return None
    if not _is_secret(value, is_strict=is_strict):
        return None
    return candidate.is_("PASSWORD", 0.8)


def _value(candidate: Candidate) -> Candidate:
    """The value without what ends it, and without the marks of bold letters."""
    value, before = candidate.value, candidate.before
    if before[-1:] not in _QUOTES:
        operator = before.rstrip(" ")[-1:]
        if operator in ("|", ",", ";"):
            value = value.partition(operator)[0]
        value = _NEXT_FIELD.split(value)[0].rstrip(",;.]}|:")
        if before.count("(") > before.count(")"):
            value = value.rstrip(")")
    value = value.rstrip("\\")
    bold = _BOLD.fullmatch(value)
    return candidate.part(*bold.span(2)) if bold else candidate.part(0, len(value))


def _is_secret(value: str, *, is_strict: bool) -> bool:
    """Whether a value is what people choose for a password, or what programs make for a key."""
    if len(set(value)) < 4:
        return False
    bits = bits_per_character(value)
    has_both = any(map(str.islower, value)) and any(map(str.isupper, value))
    if has_letters_and_digits(value):
        return bits >= (_STRICT_BITS if is_strict else _MIXED_BITS if has_both else _BITS)
    signs = len(_SIGNS.findall(value))
    return not is_strict and signs > 0 and has_both and bits >= _SIGN_BITS


PASSWORDS: Final = Expression(
    labels=frozenset({"PASSWORD"}),
    pattern=(
        rf"(?i:(?:{_NAMES}){_REST}(?:{_OPERATOR}| )|(?:{_KEYS}){_REST}(?:{_OPERATOR}))"
        r"""(?P<value>[^\s"'\x60<>]{6,128})"""
    ),
    judge=_judge,
    longest=200,
    raw=True,
)
