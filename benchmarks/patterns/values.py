"""Invented values of every kind, from faker's locales and from the forms that issuers document."""

from __future__ import annotations

import base64
import ipaddress
import json
import random
import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Final

import phonenumbers
from faker import Faker

LOCALES: Final = (
    *("en_US", "en_GB", "en_CA", "en_AU", "en_IN", "en_IE", "de_DE", "de_AT", "de_CH", "fr_FR"),
    *("fr_CH", "es_ES", "es_MX", "es_CL", "pt_BR", "pt_PT", "it_IT", "nl_NL", "nl_BE", "sv_SE"),
    *("no_NO", "da_DK", "fi_FI", "pl_PL", "cs_CZ", "ro_RO", "tr_TR", "ru_RU", "ja_JP", "ko_KR"),
    *("zh_CN", "bg_BG", "et_EE", "el_GR", "hr_HR"),
)
_NATIONAL: Final[Mapping[str, tuple[tuple[str, str], ...]]] = {
    # locale: methods of faker, and the rules of stdnum that the number must keep
    "pt_BR": (("cpf", "br.cpf"),),
    "fr_FR": (("ssn", "fr.nir"),),
    "it_IT": (("ssn", "it.codicefiscale"),),
    "es_ES": (("nif", "es.dni"), ("nie", "es.nie")),
    "es_MX": (("curp", "mx.curp"),),
    "es_CL": (("person_rut", "cl.rut"),),
    "sv_SE": (("ssn", "se.personnummer"),),
    "no_NO": (("ssn", "no.fodselsnummer"),),
    "fi_FI": (("ssn", "fi.hetu"),),
    "pl_PL": (("pesel", "pl.pesel"),),
    "cs_CZ": (("birth_number", "cz.rc"),),
    "ro_RO": (("ssn", "ro.cnp"),),
    "nl_NL": (("ssn", "nl.bsn"),),
    "nl_BE": (("ssn", "be.nn"),),
    "de_CH": (("ssn", "ch.ssn"),),
    "en_CA": (("ssn", "ca.sin"),),
    "en_IN": (("aadhaar_id", "in_.aadhaar"),),
    "zh_CN": (("ssn", "cn.ric"),),
    "ko_KR": (("ssn", "kr.rrn"),),
    "bg_BG": (("ssn", "bg.egn"),),
    "et_EE": (("ssn", "ee.ik"),),
    "tr_TR": (("ssn", "tr.tckimlik"),),
    "hr_HR": (("ssn", "hr.oib"),),
}
_ALNUM: Final = string.ascii_letters + string.digits
_HEX: Final = "0123456789abcdef"
_TRIES: Final = 60


@dataclass(frozen=True, slots=True)
class Value:
    """A value of a kind, and the language that a text about it is in."""

    kind: str
    text: str
    language: str


class Values:
    """Draws values; the same seed gives the same ones."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._seed = seed
        self._fakers: dict[str, Faker] = {}
        self.kinds: Mapping[str, Callable[[Faker, str], str | None]] = {
            "EMAIL": self._email,
            "PHONE": self._phone,
            "CREDIT_CARD": self._card,
            "IBAN": self._iban,
            "US_SSN": lambda fake, locale: str(self._faker("en_US").ssn()),
            "UK_NINO": self._nino,
            "NATIONAL_ID": self._national,
            "IP_ADDRESS": self._address,
            "DATE_OF_BIRTH": self._birth,
            "PRIVATE_KEY": self._key,
            "JWT": self._jwt,
            "AWS_ACCESS_KEY": lambda *_: "AKIA" + self._of("ABCDEFGHIJKLMNOPQRSTUVWXYZ234567", 16),
            "GITHUB_TOKEN": lambda *_: self._one("ghp_", "gho_", "ghs_") + self._of(_ALNUM, 36),
            "SLACK_TOKEN": lambda *_: (
                f"xoxb-{self._of('123456789', 12)}-{self._of('123456789', 12)}-"
                + self._of(_ALNUM, 24)
            ),
            "STRIPE_KEY": lambda *_: self._one("sk_live_", "rk_live_") + self._of(_ALNUM, 24),
            "LLM_API_KEY": lambda *_: self._one("sk-ant-api03-", "sk-proj-") + self._of(_ALNUM, 60),
            "GOOGLE_API_KEY": lambda *_: "AIza" + self._of(_ALNUM + "_-", 34) + "a",
            "API_KEY": self._api_key,
            "PASSWORD": self._password,
        }

    def draw(self, kind: str) -> Value | None:
        """One value; None where the locale that was drawn has none of the kind."""
        make = self.kinds[kind]
        choices = sorted(_NATIONAL) if kind == "NATIONAL_ID" else LOCALES
        locale = self._random.choice(choices)
        text = make(self._faker(locale), locale)
        return None if text is None else Value(kind, text, locale[:2])

    def _faker(self, locale: str) -> Faker:
        if locale not in self._fakers:
            self._fakers[locale] = Faker(locale)
            self._fakers[locale].seed_instance(self._seed)
        return self._fakers[locale]

    def _one(self, *choices: str) -> str:
        return self._random.choice(choices)

    def _of(self, signs: str, count: int) -> str:
        return "".join(self._random.choices(signs, k=count))

    def _email(self, fake: Faker, locale: str) -> str:
        return str(self._random.choice((fake.ascii_email, fake.ascii_company_email))())

    def _phone(self, fake: Faker, locale: str) -> str | None:
        for _ in range(_TRIES):
            number = str(fake.phone_number())
            try:
                parsed = phonenumbers.parse(number, locale[3:])
            except phonenumbers.NumberParseException:
                continue
            if phonenumbers.is_valid_number(parsed):
                return number
        return None

    def _card(self, fake: Faker, locale: str) -> str:
        number = str(fake.credit_card_number())
        if len(number) == 16 and self._random.random() < 0.6:
            sign = self._one(" ", "-")
            return sign.join(number[at : at + 4] for at in range(0, 16, 4))
        return number

    def _iban(self, fake: Faker, locale: str) -> str | None:
        from stdnum import iban

        number = str(fake.iban())
        if not iban.is_valid(number, check_country=False):
            return None
        if self._random.random() < 0.5:
            return " ".join(number[at : at + 4] for at in range(0, len(number), 4))
        return number

    def _nino(self, fake: Faker, locale: str) -> str:
        prefix = self._one("AB", "CE", "JK", "PA", "SR", "YW")
        parts = [prefix, *(self._of(string.digits, 2) for _ in range(3)), self._one(*"ABCD")]
        return self._one("", " ").join(parts)

    def _national(self, fake: Faker, locale: str) -> str | None:
        method, rules = self._random.choice(_NATIONAL[locale])
        is_valid = import_module(f"stdnum.{rules}").is_valid
        for _ in range(_TRIES):
            number = str(getattr(fake, method)())
            if is_valid(number):
                return number
        return None

    def _address(self, fake: Faker, locale: str) -> str:
        if self._random.random() < 0.5:
            address = str(fake.ipv4_public())
            # a network's are no host's
            return address[:-1] + "7" if address.endswith((".0", ".255")) else address
        groups = [self._of(_HEX, 4) for _ in range(4)]
        longer = ipaddress.IPv6Address(f"2001:db8:{groups[0]}::{':'.join(groups[1:])}")
        return self._one(longer.compressed, longer.exploded)

    def _birth(self, fake: Faker, locale: str) -> str:
        born = fake.date_of_birth(minimum_age=18, maximum_age=90)
        form = self._one("%Y-%m-%d", "%d.%m.%Y", "%d/%m/%Y", "%m/%d/%Y", "%d %B %Y", "%B %d, %Y")
        return str(born.strftime(form))

    def _key(self, fake: Faker, locale: str) -> str:
        name = self._one("RSA PRIVATE KEY", "PRIVATE KEY", "OPENSSH PRIVATE KEY", "EC PRIVATE KEY")
        size = self._random.choice((120, 700, 1200, 2400))
        body = base64.b64encode(self._random.randbytes(size)).decode()
        lines = [body[at : at + 64] for at in range(0, len(body), 64)]
        return "\n".join([f"-----BEGIN {name}-----", *lines, f"-----END {name}-----"])

    def _jwt(self, fake: Faker, locale: str) -> str:
        claims = {
            "sub": self._of(_HEX, 8),
            "iat": 1700000000,
            "roles": ["r"] * self._random.randrange(90),
        }
        parts = [json.dumps(each).encode() for each in ({"alg": "RS256", "typ": "JWT"}, claims)]
        parts.append(self._random.randbytes(64))
        return ".".join(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in parts)

    def _api_key(self, fake: Faker, locale: str) -> str:
        return self._one(
            "dop_v1_" + self._of(_HEX, 64),
            "shpat_" + self._of(_HEX, 32),
            f"glsa_{self._of(_ALNUM, 32)}_{self._of(_HEX, 8)}",
            "lin_api_" + self._of(_ALNUM, 40),
            f"PMAK-{self._of(_HEX, 24)}-{self._of(_HEX, 34)}",
            "dapi" + self._of(_HEX, 32),
        )

    def _password(self, fake: Faker, locale: str) -> str:
        length, special = self._random.randrange(8, 20), self._random.random() < 0.6
        return str(fake.password(length=length, special_chars=special))
