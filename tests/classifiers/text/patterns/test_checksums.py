"""Checks accept genuine numbers and refuse changed ones."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from classifiers.text.patterns.checksums import CHECKS, bits_per_character, iban, ipv4, luhn


@pytest.mark.parametrize("card", ["4111 1111 1111 1111", "378282246310005", "6011-1111-1111-1117"])
def test_cards_pass_and_any_other_last_digit_fails(card: str) -> None:
    assert luhn(card)
    assert not any(luhn(card[:-1] + digit) for digit in "0123456789" if digit != card[-1])


def test_a_row_of_one_digit_is_no_card() -> None:
    assert not luhn("0000 0000 0000 0000")


@given(st.integers(4, 21), st.sampled_from("0123456789"))
def test_an_account_number_fails_with_another_digit(place: int, digit: str) -> None:
    account = "de89370400440532013000"
    changed = account[:place] + digit + account[place + 1 :]
    assert iban(changed) == (changed == account)


def test_account_numbers_have_their_countrys_length() -> None:
    assert iban("GB82 WEST 1234 5698 7654 32") and iban("NO93 8601 1117 947")
    assert not iban("GB82 WEST 1234 5698 7654") and not iban("XX82 WEST 1234 5698 7654 32")
    assert not iban("de8937040044053201300²")


@pytest.mark.parametrize(
    ("address", "someones"),
    [("203.0.113.9", True), ("8.8.4.10", True), ("1.2.3.4", False), ("300.1.1.10", False)]
    + [("127.0.0.1", False), ("0.0.0.0", False), ("224.0.0.251", False), ("10.01.1.1", False)]
    + [("255.255.254.1", False), ("192.168.10.0", False), ("192.168.10.255", False)],
)
def test_addresses(address: str, someones: bool) -> None:
    assert ipv4(address) == someones


def test_entropy_is_counted_in_bits_per_character() -> None:
    assert bits_per_character("aaaa") == 0.0
    assert bits_per_character("abcd" * 3) == 2.0
    assert CHECKS["entropy"](2.0)("abcd") and not CHECKS["entropy"](2.1)("abcd")


def test_a_password_has_letters_and_digits() -> None:
    check = CHECKS["password"](2.5)
    assert check("hunter2secret")
    assert not check("get_token_of") and not check("1234567890") and not check("a1a1a1a1")
