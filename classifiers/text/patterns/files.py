"""Lists of words and regular expressions in TOML, read and checked.

    views = ["plain", "base64"] # disguises undone, for entries without views; default: all

    [[words]]
    label = "WEAPON"            # label of its matches
    words = ["bomb", "pipe bomb"]
    whole = true                # whole words only, which is the default
    typos = true                # those of six letters or more with typing errors, too
    views = ["plain", "leet"]   # of this entry

    [[regex]]
    label = "CARD"
    pattern = '(?:^|[^0-9])(?P<value>[0-9]{13,19})(?:[^0-9]|$)'
    check = "luhn"              # a further test, see `classifiers.text.patterns.checksums`
    bits = 3.0                  # for "entropy" and "password": bits per character
    raw = false                 # true: letters keep their case, lines their ends

An expression is applied to folded text, so that its capitals match small letters. Where it has a
group `value`, the match is that group and the rest its context: RE2 has no lookaround.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Final, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from classifiers.text.disguises.folding import fold
from classifiers.text.disguises.views import STEPS
from classifiers.text.patterns.candidates import Candidate, Expression, Finding
from classifiers.text.patterns.checksums import CHECKS, Check
from classifiers.text.patterns.expressions import compiled_regex
from classifiers.text.patterns.width import longest_match

MAX_WIDTH: Final = 4096
"""The most characters that a pattern may match: a stream is screened again from so far back."""
MAX_TYPOS: Final = 20_000
"""The most words of a list that are found with typing errors: their index takes 5 kB a word."""


def _known_step(step: str) -> str:
    if step not in STEPS:
        raise ValueError(f"there is no view {step!r}: choose from {', '.join(sorted(STEPS))}")
    return step


def _visible(word: str) -> str:
    if not fold(word).text.strip():
        raise ValueError(f"{word!r} has no letter, digit or sign: take it out")
    if len(fold(word).text) > MAX_WIDTH:
        raise ValueError(f"a word has more than {MAX_WIDTH} characters: shorten it")
    return word


Views = Annotated[frozenset[Annotated[str, AfterValidator(_known_step)]], Field(min_length=1)]


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    label: Annotated[str, Field(pattern=r"^[A-Z][A-Z0-9_]{0,31}$")]
    views: Views = STEPS


_AnyEntry = TypeVar("_AnyEntry", bound=_Entry)


class Words(_Entry):
    """Words and phrases with one label."""

    words: Annotated[tuple[Annotated[str, AfterValidator(_visible)], ...], Field(min_length=1)]
    whole: bool = True
    typos: bool = False

    @model_validator(mode="after")
    def _sound(self) -> Words:
        if self.typos and not self.whole:
            raise ValueError("typos = true is for whole words: leave out whole = false")
        return self


class Regex(_Entry):
    """A regular expression with a label."""

    pattern: Annotated[str, Field(min_length=1)]
    check: str | None = None
    bits: Annotated[float, Field(gt=0, lt=8)] | None = None
    raw: bool = False

    @model_validator(mode="after")
    def _sound(self) -> Regex:
        compiled = compiled_regex(self.pattern, raw=self.raw)
        if compiled.search(b""):
            raise ValueError("the pattern matches the empty text: it must match something")
        width = longest_match(self.pattern)
        if width > MAX_WIDTH:
            size = "any number of" if width == float("inf") else str(int(width))
            raise ValueError(
                f"the pattern can match {size} characters, more than {MAX_WIDTH}: "
                "bound it, e.g. {1,64} in place of +"
            )
        if self.check is not None and self.check not in CHECKS:
            known = ", ".join(sorted(CHECKS))
            raise ValueError(f"there is no check {self.check!r}: choose from {known}")
        if (self.bits is not None) != (self.check in ("entropy", "password")):
            raise ValueError('bits goes with check = "entropy" or "password", which need it')
        return self

    def expression(self) -> Expression:
        """What is searched for."""
        check = None if self.check is None else CHECKS[self.check](self.bits or 0.0)
        return Expression(
            labels=frozenset({self.label}),
            pattern=self.pattern,
            judge=None if check is None else _judge(self.label, check),
            longest=int(longest_match(self.pattern)),
            raw=self.raw,
            views=self.views,
        )


def _judge(label: str, check: Check) -> Callable[[Candidate], Finding | None]:
    return lambda candidate: candidate.is_(label) if check(candidate.value) else None


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    views: Views = STEPS
    words: tuple[Words, ...] = ()
    regex: tuple[Regex, ...] = ()


@dataclass(frozen=True, slots=True)
class Patterns:
    """The entries of one or several lists."""

    words: tuple[Words, ...]
    expressions: tuple[Expression, ...]


def parse(text: str) -> Patterns:
    """Read a list. Raises ValueError with one line that says where it is wrong."""
    try:
        file = _File.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"not TOML: {error}") from error
    except ValidationError as error:
        raise ValueError(_first(error)) from error
    if not file.words and not file.regex:
        raise ValueError("the list is empty: give it [[words]] or [[regex]]")
    misspelt = sum(len(entry.words) for entry in file.words if entry.typos)
    if misspelt > MAX_TYPOS:
        raise ValueError(
            f"{misspelt} words have typos = true, at most {MAX_TYPOS} may: leave it out for some"
        )
    words = tuple(_with_default(entry, file.views) for entry in file.words)
    regexes = [_with_default(entry, file.views) for entry in file.regex]
    return Patterns(words, tuple(regex.expression() for regex in regexes))


def _with_default(entry: _AnyEntry, views: frozenset[str]) -> _AnyEntry:
    return entry if "views" in entry.model_fields_set else entry.model_copy(update={"views": views})


def _first(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    place = [str(part + 1) if isinstance(part, int) else part for part in first["loc"]]
    return f"{' '.join(place)}: {first['msg'].removeprefix('Value error, ')}"
