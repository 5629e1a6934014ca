"""Regular expressions for UTF-8 bytes, compiled by RE2: linear in the text, whatever the text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import re2


def compiled_regex(pattern: str, *, raw: bool) -> Any:
    """The expression for UTF-8 bytes, leftmost-longest. Raises ValueError where RE2 refuses it."""
    try:
        return re2.compile(pattern.encode(), _options(raw=raw))
    except re2.error as error:
        reason = error.args[0]
        message = reason.decode(errors="replace") if isinstance(reason, bytes) else str(reason)
        raise ValueError(f"not a regular expression of RE2's: {message}") from error


class SearchSet:
    """Expressions that are searched as one."""

    def __init__(self, patterns: Sequence[str], *, raw: bool) -> None:
        # one that always matches: where even that does not, RE2 was short of memory
        self._compiled = _filled(re2.Set.SearchSet(_options(raw=raw)), [*patterns, ""])
        self._count = len(patterns)

    def matching(self, data: bytes) -> Sequence[int]:
        """The indexes, in order, of those that match somewhere in some UTF-8 bytes; of all, where
        RE2 is short of memory."""
        found = self._compiled.Match(data)
        if not found:
            return range(self._count)
        return sorted(index for index in found if index < self._count) if len(found) > 1 else ()


def full_match_set(patterns: Iterable[str], *, raw: bool) -> Any:
    """Expressions that RE2 accepts as one: `Match` gives the indexes of those that match all of
    some UTF-8 bytes, or None."""
    return _filled(re2.Set.FullMatchSet(_options(raw=raw)), patterns)


def _filled(compiled: Any, patterns: Iterable[str]) -> Any:
    for pattern in patterns:
        compiled.Add(pattern.encode())
    compiled.Compile()
    return compiled


def _options(*, raw: bool) -> Any:
    options = re2.Options()
    options.longest_match = True
    options.log_errors = False
    options.case_sensitive = raw
    options.max_mem = 64 * 2**20
    return options
