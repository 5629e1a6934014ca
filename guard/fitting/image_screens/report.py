"""The report of an image screen's fit: the figures of any screen, and its nearest mistakes as a
contact sheet."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from guard.fitting.image_screens.fit import ImageScreenFit, pixels_of
from guard.fitting.judgement import Scored
from guard.fitting.screens.report import IMAGES, json_of, page_of
from guard.reporting.page import Images
from guard.reporting.pngs import png, uri

SHOWN = 24
"""Images of a contact sheet."""
_COLUMNS, _SIDE = 6, 192


def as_json(fit: ImageScreenFit, took_s: float) -> dict[str, Any]:
    """All figures of a fit, with the scores that the plots show."""
    return json_of(fit, IMAGES, took_s)


def as_page(fit: ImageScreenFit) -> str:
    """The page: figures on held-out images, the nearest mistakes, and settings."""
    return page_of(fit, IMAGES, _sheets(fit))


def _sheets(fit: ImageScreenFit) -> list[Images]:
    threshold = fit.held_out.threshold
    sheets = []
    for title, found in (
        ("Nearest mistakes: images with the concept that do not fire", fit.held_out.missed),
        ("Nearest mistakes: images without it that fire", fit.held_out.hit[::-1]),
        ("Nearest to a mistake: images without it, just below the threshold", _narrow(fit)),
    ):
        if not found:
            continue
        rows = [
            ("", [_tile(fit, each) for each in found[start : start + _COLUMNS]])
            for start in range(0, min(len(found), SHOWN), _COLUMNS)
        ]
        caption = f"{len(found)} in all; the threshold is {threshold:.4f}."
        sheets.append(Images(title, [""] * _COLUMNS, rows, caption))
    return sheets


def _narrow(fit: ImageScreenFit) -> Sequence[Scored]:
    below = [
        each
        for each in fit.held_out.prompts
        if each.kind == "benign" and each.score <= fit.held_out.threshold
    ]
    return sorted(below, key=lambda each: -each.score)[:_COLUMNS]


def _tile(fit: ImageScreenFit, each: Scored) -> tuple[str, str]:
    thumbnail = Image.fromarray(pixels_of(fit.images[each.prompt]))
    thumbnail.thumbnail((_SIDE, _SIDE))
    name = "/".join(Path(each.prompt).parts[-2:])
    return uri(png(np.asarray(thumbnail))), f"{name}: {each.score:.4f}"
