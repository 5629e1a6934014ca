"""Compressed bodies: what is in them is bounded, and broken ones are refused."""

from __future__ import annotations

import gzip
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.errors import BodyTooLarge, InvalidEncoding, UnsupportedMedia
from server.wire.codings import coding_of, unpacked

LIMIT = 100_000


def bare_deflate(content: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(content) + packer.flush()


@given(st.binary(max_size=2000))
def test_what_was_packed_comes_out(content: bytes) -> None:
    assert unpacked(gzip.compress(content), "gzip", LIMIT) == content
    assert unpacked(zlib.compress(content), "deflate", LIMIT) == content
    # one in some thousand of these looks as if it had a header
    assert unpacked(b"" + bare_deflate(b"{" + content), "deflate", LIMIT) == b"{" + content


def test_parts_of_gzip_are_one_body() -> None:
    assert unpacked(gzip.compress(b"a") + gzip.compress(b"b"), "gzip", LIMIT) == b"ab"


@pytest.mark.parametrize("size", [LIMIT, LIMIT + 1])
def test_the_limit_is_that_of_the_content(size: int) -> None:
    parts = gzip.compress(bytes(size - 10)) + gzip.compress(bytes(10))
    for packed in (gzip.compress(bytes(size)), parts):
        if size <= LIMIT:
            assert len(unpacked(packed, "gzip", LIMIT)) == size
        else:
            with pytest.raises(BodyTooLarge, match=f"{LIMIT} bytes"):
                unpacked(packed, "gzip", LIMIT)


def test_a_bomb_is_not_unpacked() -> None:
    bomb = gzip.compress(bytes(300_000_000), 1)
    with pytest.raises(BodyTooLarge):
        unpacked(bomb, "gzip", LIMIT)


@pytest.mark.parametrize("end", [-1, -9, 3])
def test_half_a_body_is_refused(end: int) -> None:
    for packed, coding in ((gzip.compress(b"{}" * 50), "gzip"), (zlib.compress(b"{}"), "deflate")):
        with pytest.raises(InvalidEncoding):
            unpacked(packed[:end], coding, LIMIT)  # type: ignore[arg-type]


def test_what_is_not_packed_is_refused() -> None:
    with pytest.raises(InvalidEncoding, match="gzip"):
        unpacked(b'{"model": "m"}', "gzip", LIMIT)
    with pytest.raises(InvalidEncoding):
        unpacked(gzip.compress(b"{}") + b"more", "gzip", LIMIT)


def test_names_of_codings() -> None:
    assert coding_of([]) is None and coding_of(["identity"]) is None
    assert coding_of(["GZIP"]) == "gzip" and coding_of(["identity, x-gzip"]) == "gzip"
    for values in (["br"], ["zstd"], ["gzip, gzip"], ["gzip", "deflate"], ["nonsense"]):
        with pytest.raises(UnsupportedMedia, match="gzip or deflate"):
            coding_of(values)
