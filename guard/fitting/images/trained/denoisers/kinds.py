"""The kinds of layers that a denoiser's erasers are trained on, without torch."""

from __future__ import annotations

from typing import Literal, get_args

from guard.errors import DataError

Kind = Literal[
    "cross-attention", "queries", "self-attention", "feed-forward", "projection", "convolution"
]
KINDS: tuple[Kind, ...] = get_args(Kind)
"""`queries` are those of cross-attention, which the first kind has too; `projection` leads into and
out of transformer blocks."""


def kinds_in(text: str) -> tuple[Kind, ...]:
    """The kinds that are named, separated by commas. Raises DataError for one that is not known."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in KINDS]
    if unknown or not names:
        raise DataError(
            f"--layers: {unknown[0] if unknown else text!r} is no kind of layer: give some of "
            f"{', '.join(KINDS)}, separated by commas"
        )
    return tuple(kind for kind in KINDS if kind in names)
