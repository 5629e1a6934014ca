"""What people call a value of a kind, by language."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from typing import Final

from benchmarks.patterns.values import Value

_ENGLISH: Final[Mapping[str, Sequence[str]]] = {
    "EMAIL": ("email", "e-mail address", "contact"),
    "PHONE": ("phone", "tel", "mobile", "phone_number"),
    "CREDIT_CARD": ("card number", "credit card", "card"),
    "IBAN": ("iban", "account"),
    "US_SSN": ("SSN", "social security number"),
    "UK_NINO": ("national insurance number", "NI number"),
    "NATIONAL_ID": ("national id", "id number", "tax id"),
    "IP_ADDRESS": ("ip", "client address", "host"),
    "DATE_OF_BIRTH": ("date of birth", "dob", "birthday", "date_of_birth"),
    "PASSWORD": ("password", "passwd", "db_password"),
}
_OTHERS: Final[Mapping[str, Mapping[str, Sequence[str]]]] = {
    "de": {"PHONE": ("Telefon", "Handy"), "NATIONAL_ID": ("AHV-Nummer",),
           "DATE_OF_BIRTH": ("geboren am", "Geburtsdatum"), "PASSWORD": ("Passwort",)},
    "fr": {"PHONE": ("téléphone", "portable"), "NATIONAL_ID": ("numéro de sécurité sociale",),
           "DATE_OF_BIRTH": ("né le", "date de naissance"), "PASSWORD": ("mot de passe",)},
    "es": {"PHONE": ("teléfono", "móvil"), "NATIONAL_ID": ("documento de identidad",),
           "DATE_OF_BIRTH": ("fecha de nacimiento",), "PASSWORD": ("contraseña",)},
    "pt": {"PHONE": ("telefone", "celular"), "NATIONAL_ID": ("CPF",),
           "DATE_OF_BIRTH": ("data de nascimento",), "PASSWORD": ("senha",)},
    "it": {"PHONE": ("telefono", "cellulare"), "NATIONAL_ID": ("codice fiscale",),
           "DATE_OF_BIRTH": ("data di nascita",)},
    "nl": {"PHONE": ("telefoon",), 
           "DATE_OF_BIRTH": ("geboortedatum",), "PASSWORD": ("wachtwoord",)},
    "pl": {"PHONE": ("telefon",), "NATIONAL_ID": ("PESEL",), "PASSWORD": ("hasło",)},
    "ru": {"PHONE": ("телефон",), "DATE_OF_BIRTH": ("дата рождения",), "PASSWORD": ("пароль",)},
    "zh": {"PHONE": ("电话", "手机"), "NATIONAL_ID": ("身份证号",), "EMAIL": ("邮箱",),
           "DATE_OF_BIRTH": ("出生日期",), "PASSWORD": ("密码",)},
    "ja": {"PHONE": ("電話番号",), "DATE_OF_BIRTH": ("生年月日",), "PASSWORD": ("パスワード",)},
    "ko": {"PHONE": ("전화번호",), "NATIONAL_ID": ("주민등록번호",),
           "DATE_OF_BIRTH": ("생년월일",)},
}  # fmt: skip
ALWAYS: Final = frozenset({"DATE_OF_BIRTH", "PASSWORD"})
"""Kinds that nothing but a label tells."""


_NUMBER: Final = re.compile(
    r"\+|00|\(?0[1-9][0-9]*[ ()/.-]|(?:1[ .-])?(?:\([2-9][0-9]{2}\) ?|[2-9][0-9]{2}[.-])[2-9]|8 \("
)


def has_form(value: Value) -> bool:
    """Whether a value without a label looks like one of its kind to a reader who does not know the
    country: a telephone number has a prefix or an area code, another number a letter or a sign."""
    if value.kind == "PHONE":
        return _NUMBER.match(value.text) is not None
    return value.kind != "NATIONAL_ID" or re.search(r"[^0-9 ]", value.text) is not None


def label_for(value: Value, draw: random.Random) -> str:
    """A label for the value, in its language or in English; a key's is the name of its kind."""
    own = _OTHERS.get(value.language, {}).get(value.kind, ())
    english = _ENGLISH.get(value.kind, (value.kind.lower(), "token"))
    return draw.choice(own if own and draw.random() < 0.5 else english)
