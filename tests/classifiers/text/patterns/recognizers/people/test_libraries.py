"""Libraries that raise for a number have not found one."""

from __future__ import annotations

import phonenumbers
import pytest
from stdnum.exceptions import InvalidChecksum

from classifiers.text.patterns.recognizers.people.libraries import answer


@pytest.mark.parametrize(
    "error",
    [KeyError("county"), IndexError(), ValueError(), InvalidChecksum()]
    + [phonenumbers.NumberParseException(0, "no number")],
)
def test_a_number_that_a_library_cannot_judge_is_none(error: Exception) -> None:
    def raises(number: str) -> bool:
        raise error

    assert answer(raises, "229040196408207361") is None


def test_an_answer_is_passed_on() -> None:
    assert answer(phonenumbers.parse, "+49301234567", None) is not None
    assert answer(str.isdigit, "x") is False
