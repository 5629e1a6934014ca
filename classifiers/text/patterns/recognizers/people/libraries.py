"""Questions to the libraries of numbers, whose tables have gaps: they raise for some numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

from phonenumbers import NumberParseException
from stdnum.exceptions import ValidationError

_P = ParamSpec("_P")
_T = TypeVar("_T")


def answer(question: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T | None:
    """What stdnum or phonenumbers says; None where it raises, which is no number either."""
    try:
        return question(*args, **kwargs)
    except (NumberParseException, ValidationError, LookupError, ValueError):
        return None
