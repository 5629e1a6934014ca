"""Contact sheets: pairs of images, one over the other, with their prompts, as one PNG."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from guard.errors import DataError

Image = NDArray[np.uint8]
"""`[height, width, 3]`."""

SIDE = 160
"""The width of an image on the sheet, in pixels."""
_MARGIN, _LABEL, _LINE = 8, 46, 15


@dataclass(frozen=True, eq=False)
class Pair:
    """An image over another one, None for one that was blocked; `caption` stands over both,
    `below` under them."""

    caption: str
    above: Image
    under: Image | None
    below: str = ""


def write_sheet(path: Path, rows: Sequence[tuple[str, Sequence[Pair]]]) -> None:
    """Write rows of pairs, each under its title. Raises DataError if the file cannot be written."""
    from PIL import Image as Pillow
    from PIL import ImageDraw

    columns = max((len(pairs) for _, pairs in rows), default=0)
    height = max((round(SIDE * _ratio(p.above)) for _, ps in rows for p in ps), default=SIDE)
    step, tall = SIDE + _MARGIN, 2 * height + 2 * _LABEL + 2 * _LINE
    sheet = Pillow.new("RGB", (columns * step + _MARGIN, len(rows) * tall + _MARGIN), "white")
    pen = ImageDraw.Draw(sheet)
    for line, (title, pairs) in enumerate(rows):
        top = _MARGIN + line * tall
        pen.text((_MARGIN, top), title, fill="black")
        for column, pair in enumerate(pairs):
            left = _MARGIN + column * step
            pen.text((left, top + _LINE), _wrapped(pair.caption), fill="dimgrey")
            for number, image in enumerate((pair.above, pair.under)):
                place = (left, top + _LINE + _LABEL + number * (height + 2))
                if image is None:
                    pen.rectangle((*place, left + SIDE, place[1] + height), fill="lightgrey")
                    pen.text((left + 8, place[1] + 8), "blocked", fill="black")
                    continue
                tile = Pillow.fromarray(image)
                enlarged = tile.width < SIDE
                filtering = Pillow.Resampling.NEAREST if enlarged else Pillow.Resampling.LANCZOS
                sheet.paste(tile.resize((SIDE, height), filtering), place)
            foot = top + _LINE + _LABEL + 2 * height + 4
            pen.text((left, foot), _wrapped(pair.below), fill="firebrick")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sheet.save(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror}") from error


def _ratio(image: Image) -> float:
    return float(image.shape[0] / image.shape[1])


def _wrapped(text: str) -> str:
    return "\n".join(textwrap.wrap(text, 26)[:3])
