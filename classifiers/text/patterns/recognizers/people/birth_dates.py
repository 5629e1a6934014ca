"""DATE_OF_BIRTH: dates behind a word that says whose birth they are."""

from __future__ import annotations

import re
from typing import Final

from classifiers.text.patterns.candidates import Candidate, Expression, Finding
from classifiers.text.patterns.recognizers.labels import folded, form

_LABELS: Final = folded(
    [
        *("date of birth", "date_of_birth", "date-of-birth", "dateofbirth", "birth date"),
        *("birth_date", "birthdate", "birthday", "birth_day", "born", "born on", "dob", "d.o.b."),
        *("d.o.b", "geboren am", "geboren", "geb.", "geburtsdatum", "geburtstag", "né le"),
        *("née le", "né(e) le", "date de naissance", "fecha de nacimiento", "fecha_nacimiento"),
        *("nacido el", "nacida el", "f. nac.", "data de nascimento", "nascido em", "nascida em"),
        *("data di nascita", "nato il", "nata il", "geboortedatum", "geboren op", "födelsedatum"),
        *("född", "fødselsdato", "født", "syntymäaika", "data urodzenia", "urodzony", "urodzona"),
        *("datum narození", "születési dátum", "született", "data nașterii", "дата рождения"),
        *("родился", "родилась", "дата народження", "ημερομηνία γέννησης", "doğum tarihi"),
        *("出生日期", "生日", "生年月日", "생년월일", "تاريخ الميلاد", "תאריך לידה", "जन्म तिथि"),
        *("วันเกิด", "ngày sinh", "tanggal lahir", "tarikh lahir"),
    ]
)
_DAY: Final = r"[0-9]{1,2}(?:st|nd|rd|th|\.|º)?"
_MONTH: Final = r"[^\W\d_]{3,12}\.?"
_DATE: Final = re.compile(
    r"(?:[0-9]{4} ?[./年년-] ?[0-9]{1,2} ?[./月월-] ?[0-9]{1,2}[日일]?"
    r"|[0-9]{1,2}[./ -]{1,2}[0-9]{1,2}[./ -]{1,2}[0-9]{2,4}|[0-9]{8}"
    rf"|{_DAY}(?: of| de| d[ei])?[ -]{_MONTH},?(?: de| del)?[ -][0-9]{{4}}"
    rf"|{_MONTH} {_DAY},? [0-9]{{4}})(?![0-9])"
)
_NUMBERS: Final = re.compile(r"[0-9]+")


def _judge(candidate: Candidate) -> Finding | None:
    date = _DATE.match(candidate.value)
    if date is None:
        return None
    numbers = [int(number) for number in _NUMBERS.findall(date[0])]
    if len(numbers) == 1:
        number = numbers[0]
        numbers = [number // 10000, number // 100 % 100, number % 100]
    years = [number for number in (numbers[0], numbers[-1]) if number > 31]
    others = [number for number in numbers if number <= 31]
    is_date = len(others) == len(numbers) - len(years) and all(others) and len(years) < 2
    if not is_date or (years and not (1870 <= years[0] <= 2100 or years[0] < 100)):
        return None
    return candidate.part(0, date.end()).is_("DATE_OF_BIRTH")


BIRTH_DATES: Final = Expression(
    labels=frozenset({"DATE_OF_BIRTH"}),
    pattern=(
        rf"(?:^|[^a-z])(?:{'|'.join(map(form, _LABELS))})"
        r"[^a-z0-9]{0,12}(?:(?:is|was|on|am|le|el|il)[^a-z0-9]{1,4})?"
        r"(?P<value>[0-9a-z\x80-\x{10ffff}][0-9a-z\x80-\x{10ffff} .,/-]{5,30})"
    ),
    judge=_judge,
    longest=130,
)
