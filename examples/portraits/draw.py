"""The sheets of portraits, drawn by DiceBear's Open Peeps: `python -m examples.portraits.draw`.

The sheets are committed, so that nothing else needs npm: a row for each person, a column for each
portrait. The portraits of a person share the look and differ in expression and clothes; the last
TEST columns have expressions that stand in no other column. Licences: see NOTICE.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from dataclasses import asdict
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from examples.portraits.people import HERE, people

PACKAGES = ("@dicebear/core@9.4.3", "@dicebear/collection@9.4.3", "@resvg/resvg-js@2.6.2")
SIDE = 112
"""Of a portrait in the sheet, in pixels: a little more than the model's, for crops."""
SHEETS = HERE / "benchmark" / "sheets"
TRAIN, TEST = 9, 3
PER_SHEET = 60
FACES = (
    *("awe", "blank", "calm", "cheeky", "concerned", "contempt", "cute", "driven", "eatingHappy"),
    *("explaining", "eyesClosed", "fear", "hectic", "lovingGrin1", "rage", "serious", "smile"),
    *("smileBig", "smileTeethGap", "solemn"),
)
TEST_FACES = ("suspicious", "tired", "smileLOL", "lovingGrin2", "veryAngry")
CLOTHES = ("e78276", "ffcf77", "fdea6b", "78e185", "9ddadb", "8fa7df", "e279c7")


def sheet(number: int) -> Path:
    """The file of the people `number * PER_SHEET` and after."""
    return SHEETS / f"{number}.webp"


@cache
def portraits() -> NDArray[np.uint8]:
    """`[people, TRAIN + TEST, SIDE, SIDE, 4]`: all portraits, with transparent backgrounds."""
    rows = []
    for number in range(-(-len(people()) // PER_SHEET)):
        pixels = np.asarray(Image.open(sheet(number)).convert("RGBA"))
        tall, wide = pixels.shape[0] // SIDE, TRAIN + TEST
        tiles = pixels.reshape(tall, SIDE, wide, SIDE, 4)
        rows.append(tiles.swapaxes(1, 2))
    return np.concatenate(rows)


def build(seed: int = 1) -> None:
    """Install the packages with npm, draw all portraits and write the sheets."""
    rng = np.random.default_rng(seed)
    asked = []
    for person in people():
        faces = [*rng.choice(FACES, TRAIN, replace=False), *rng.choice(TEST_FACES, TEST, False)]
        asked += [
            asdict(person.look) | {"face": str(face), "clothes": str(rng.choice(CLOTHES))}
            for face in faces
        ]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        subprocess.run(["npm", "init", "-y"], cwd=folder, check=True, capture_output=True)
        subprocess.run(["npm", "install", *PACKAGES], cwd=folder, check=True, capture_output=True)
        script = folder / "draw.mjs"
        script.write_text((HERE / "draw.mjs").read_text("utf-8"), "utf-8")
        request = json.dumps({"size": SIDE, "portraits": asked})
        subprocess.run(["node", script, folder], input=request, text=True, check=True)
        wide = TRAIN + TEST
        SHEETS.mkdir(parents=True, exist_ok=True)
        for number, first in enumerate(range(0, len(people()), PER_SHEET)):
            shown = range(first, min(first + PER_SHEET, len(people())))
            page = Image.new("RGBA", (wide * SIDE, len(shown) * SIDE))
            for row, person in enumerate(shown):
                for column in range(wide):
                    tile = Image.open(folder / f"{person * wide + column}.png").convert("RGBA")
                    page.paste(tile, (column * SIDE, row * SIDE))
            page.save(sheet(number), lossless=True, quality=100, method=6)
    grid = {"tile": SIDE, "columns": TRAIN + TEST}
    names = [sheet(n).name for n in range(-(-len(people()) // PER_SHEET))]
    (SHEETS / "sheets.json").write_text(json.dumps(dict.fromkeys(names, grid)) + "\n", "utf-8")


def tile(person: int, column: int) -> str:
    """The portrait as files of the data set name it: the sheet, then the tile's number."""
    number, row = divmod(person, PER_SHEET)
    return f"{SHEETS.name}/{sheet(number).name}#{row * (TRAIN + TEST) + column}"


if __name__ == "__main__":
    build()
