"""Compressed request bodies: unpacked, bounded by the size of what is in them."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Literal

from server.errors import BodyTooLarge, InvalidEncoding, UnsupportedMedia

Coding = Literal["gzip", "deflate"]
_NAMES: dict[str, Coding | None] = {
    "gzip": "gzip",
    "x-gzip": "gzip",
    "deflate": "deflate",
    "identity": None,
    "": None,
}
_GZIP_WINDOW, _ZLIB_WINDOW, _BARE_WINDOW = 16 + zlib.MAX_WBITS, zlib.MAX_WBITS, -zlib.MAX_WBITS


def coding_of(values: Sequence[str]) -> Coding | None:
    """The coding of a body with these values of `Content-Encoding`; None where it has none.

    Raises UnsupportedMedia for one that is not read here, and for several.
    """
    names = [name.strip().lower() for value in values for name in value.split(",")]
    codings = [name for name in names if _NAMES.get(name, "unknown") is not None]
    if not codings:
        return None
    coding = _NAMES.get(codings[0])
    if coding is None or len(codings) > 1:
        raise UnsupportedMedia(
            f"A body in the encoding {', '.join(codings)[:80]!r} is not read here: send it as it "
            "is, or in gzip or deflate."
        )
    return coding


def unpacked(body: bytes, coding: Coding, limit: int) -> bytes:
    """What is in a compressed body: `limit` bytes at most.

    Raises BodyTooLarge as soon as it is more, and InvalidEncoding where it is broken.
    """
    window = _GZIP_WINDOW
    if coding == "deflate":
        # some clients send it without the header that it should have
        has_header = len(body) > 1 and body[0] & 15 == 8 and (body[0] << 8 | body[1]) % 31 == 0
        window = _ZLIB_WINDOW if has_header else _BARE_WINDOW
    out = bytearray()
    try:
        while body:
            decoder = zlib.decompressobj(window)
            out += decoder.decompress(body, limit + 1 - len(out))
            if len(out) > limit:
                raise BodyTooLarge(
                    f"The request body is longer than {limit} bytes when it is unpacked; send less."
                )
            if not decoder.eof:
                raise InvalidEncoding(f"The body is not whole in {coding}.")
            body = decoder.unused_data  # gzip may have several parts, one behind the other
            if body and coding == "deflate":
                raise InvalidEncoding("Something follows the compressed body.")
    except zlib.error:
        raise InvalidEncoding(f"The body is not in {coding}, which its header names.") from None
    return bytes(out)
