"""The pattern lists that `[[patterns]]` names: lists that are shipped, and TOML files."""

from __future__ import annotations

from typing import cast, get_args

from classifiers.text.patterns.matching import PatternSet, shipped
from classifiers.text.patterns.recognizers import Shipped
from guard.errors import ArtifactError

SHIPPED: tuple[str, ...] = get_args(Shipped)
"""The names of the shipped lists."""


def read_patterns(source: str) -> PatternSet:
    """The shipped list with the name `source`, or the list in the file `source`.

    Raises ArtifactError where there is no such list, or where it has faults.
    """
    try:
        if source in SHIPPED:
            return shipped(cast(Shipped, source))
        return PatternSet.load(source)
    except ValueError as error:
        raise ArtifactError(str(error)) from error
