"""Parameters of the query."""

from __future__ import annotations

from server.errors import InvalidParameter


def whole_number(name: str, given: str, most: int) -> int:
    """A number from 1 to `most`. Raises InvalidParameter."""
    # by its length first: Python refuses very long numbers in its own words
    is_short = given.isdecimal() and given.isascii() and len(given) <= len(str(most))
    if not is_short or not 1 <= int(given) <= most:
        raise InvalidParameter(f"'{name}' is a number from 1 to {most}.", param=name)
    return int(given)
