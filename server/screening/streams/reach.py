"""Which channels of a stream have gone quiet while others of their group go on."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from server.screening.streams.formats.base import Group


class Reach:
    """Counts the characters of each group. A channel is quiet once `patience` characters of its
    group have come behind its last one, or another channel has begun that says it is complete."""

    def __init__(self, patience: int) -> None:
        self._patience = patience
        self._of_group: dict[Group, int] = {}
        self._of_buffer: dict[Any, int] = {}
        self._complete: set[Hashable] = set()

    def __len__(self) -> int:
        """Groups that have come."""
        return len(self._of_group)

    def grow(self, group: Group, buffer: Hashable, count: int, complete: Hashable) -> None:
        """`count` characters have come to `buffer`; those of `complete`, if any, are complete."""
        self._of_group[group] = self._of_group.get(group, 0) + count
        if count:
            self._of_buffer[buffer] = self._of_group[group]
            self._complete.discard(buffer)
            if complete is not None:
                self._complete.add(complete)

    def is_quiet(self, group: Group, buffer: Hashable) -> bool:
        """Whether text of `buffer` is not to wait for more of it."""
        behind = self._of_group.get(group, 0) - self._of_buffer.get(buffer, 0)
        return buffer in self._complete or behind >= self._patience
