"""The emoji images of two npm packages in one sheet: `python -m examples.emoji.sprites`.

The sheet is committed, so that nothing else needs npm. It has a row for each style and a column for
each concept.
Licences: see NOTICE at the top of the repository.
"""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

HERE = Path(__file__).parent
SHEET = HERE / "sprites.png"
STYLES = ("noto", "twemoji")
PACKAGES = {
    "noto": "emoji-datasource-google@16.0.0",
    "twemoji": "emoji-datasource-twitter@16.0.0",
}
FOLDERS = {"noto": "google", "twemoji": "twitter"}
SIDE = 64


@cache
def concepts() -> tuple[dict[str, object], ...]:
    """The entries of concepts.json, in the order of the sheet's columns."""
    return tuple(json.loads((HERE / "concepts.json").read_text("utf-8")))


@cache
def names() -> tuple[str, ...]:
    return tuple(str(concept["name"]) for concept in concepts())


@cache
def sprites(size: int) -> NDArray[np.float32]:
    """`[styles, concepts, size, size, 4]` in 0..1, alpha premultiplied."""
    sheet = Image.open(SHEET).convert("RGBA")
    result = np.zeros((len(STYLES), len(names()), size, size, 4), np.float32)
    for style in range(len(STYLES)):
        for concept in range(len(names())):
            left, top = concept * SIDE, style * SIDE
            sprite = sheet.crop((left, top, left + SIDE, top + SIDE))
            pixels = np.asarray(sprite, np.float32) / 255
            pixels[..., :3] *= pixels[..., 3:]
            # resized with premultiplied alpha, or the transparent rim would bleed in
            channels = [
                Image.fromarray(pixels[..., c]).resize((size, size), Image.Resampling.LANCZOS)
                for c in range(4)
            ]
            result[style, concept] = np.clip(np.stack([np.asarray(c) for c in channels], -1), 0, 1)
    return result


def _package(requirement: str, folder: Path) -> tarfile.TarFile:
    packed = subprocess.run(
        ["npm", "pack", "--silent", requirement],
        cwd=folder,
        check=True,
        capture_output=True,
        text=True,
    )
    return tarfile.open(folder / packed.stdout.strip().splitlines()[-1])


def build() -> None:
    """Download both packages with npm and write the sheet."""
    sheet = Image.new("RGBA", (SIDE * len(concepts()), SIDE * len(STYLES)))
    with tempfile.TemporaryDirectory() as temporary:
        for row, style in enumerate(STYLES):
            with _package(PACKAGES[style], Path(temporary)) as archive:
                for column, concept in enumerate(concepts()):
                    path = f"package/img/{FOLDERS[style]}/64/{concept['image']}"
                    member = archive.extractfile(path)
                    assert member is not None, path
                    sprite = Image.open(io.BytesIO(member.read())).convert("RGBA")
                    sheet.paste(sprite, (column * SIDE, row * SIDE))
    sheet.save(SHEET, optimize=True)


if __name__ == "__main__":
    build()
