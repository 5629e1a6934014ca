"""The fast decoder of ASCII85 agrees with the standard library's."""

from __future__ import annotations

import base64

from hypothesis import example, given
from hypothesis import strategies as st

from classifiers.text.disguises.codecs.bases import a85decode


def _either(decode: object, digits: str) -> bytes | None:
    try:
        return decode(digits)  # type: ignore[operator, no-any-return]
    except ValueError:
        return None


@given(st.binary(max_size=60))
def test_what_was_encoded_is_decoded(data: bytes) -> None:
    assert a85decode(base64.a85encode(data).decode()) == data


@given(st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=40))
@example("")
@example("s8W-!")
@example('s8W-"')
@example("uuuuu")
@example("!!z")
@example("zz!!")
@example("/usr/lib/python3.11/site-packages")
def test_all_other_runs_too(digits: str) -> None:
    assert _either(a85decode, digits) == _either(base64.a85decode, digits)
