"""What `[[patterns]]` names: shipped lists, TOML files, the detector of unreadable text."""

from __future__ import annotations

from typing import cast, get_args

from classifiers.text.patterns.matching import PatternSet, shipped
from classifiers.text.patterns.recognizers import Shipped
from guard.errors import ArtifactError

SHIPPED: tuple[str, ...] = get_args(Shipped)
"""The names of the shipped lists."""
UNREADABLE = "unreadable"
"""The source that is no list: what is encoded and cannot be read."""


def read_patterns(source: str) -> PatternSet | None:
    """The shipped list with the name `source`, or the list in the file `source`; None for
    UNREADABLE.

    Raises ArtifactError where there is no such list, or where it has faults.
    """
    if source == UNREADABLE:
        return None
    try:
        if source in SHIPPED:
            return shipped(cast(Shipped, source))
        return PatternSet.load(source)
    except ValueError as error:
        raise ArtifactError(str(error)) from error
