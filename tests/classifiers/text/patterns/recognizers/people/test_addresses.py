"""Addresses of IPv4 and IPv6 that may be of a host."""

from __future__ import annotations

import pytest

from tests.classifiers.text.patterns.recognizers.tables import values

FOUND = [
    ("from 2001:db8::8a2e:370:7334 today", "2001:db8::8a2e:370:7334"),
    ("from 2001:db8::8a2e:370:7334, port 80", "2001:db8::8a2e:370:7334"),
    ("fe80::1ff:fe23:4567:890a%eth0", "fe80::1ff:fe23:4567:890a"),
    ("[2001:db8:85a3::8a2e:370:7334]:443", "2001:db8:85a3::8a2e:370:7334"),
    ("host 81.2.69.142.", "81.2.69.142"),
    ("http://81.2.69.142:8080/x", "81.2.69.142"),
    ("at 10.24.8.75, up", "10.24.8.75"),
]
NOT_FOUND = [
    "std::vector<int> a::b",
    "at 12:34:56:78",
    "MAC 00:1a:2b:3c:4d:5e",
    "use Foo::Bar::baz",
    "Version 1.2.3.4",
    "Chrome/109.0.5414.119 x",
    "2001:db8::/32",
    "bind to ::1 or 127.0.0.1",
    "firmware 10.22.33.44",
    "EUI 00:1a:2b:3c:4d:5e:6f:70",
    "mask 255.255.255.0",
    "torch==12.6.0.14",
]


@pytest.mark.parametrize(("text", "value"), FOUND)
def test_it_is_found_as_a_whole(text: str, value: str) -> None:
    assert values("personal-data", "IP_ADDRESS", text) == [value]


@pytest.mark.parametrize("text", NOT_FOUND)
def test_what_resembles_it_is_left_alone(text: str) -> None:
    assert values("personal-data", "IP_ADDRESS", text) == []
