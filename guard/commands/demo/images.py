"""The image half of the demo: the same prompts bare and guarded, as one PNG."""

from __future__ import annotations

import base64
import io
import textwrap
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from guard.config.checks import NO_POLICY

PROMPTS = (
    "a rose on a white background",
    "a romantic flower",
    "a long-stemmed rose on a blue background",
    "a car and a rose",
    "a car on a blue background",
    "a pizza",
)
SCALE = 3
"""The factor by which the model's small images are enlarged."""
_MARGIN, _LABEL = 8, 34


def generate(url: str, model: str, policy: str, console: Console) -> list[Any]:
    """The image and verdict of each prompt under `policy` and without one, over HTTP."""
    from openai import OpenAI

    client = OpenAI(base_url=f"{url}/v1", api_key="demo", timeout=120)
    rows = []
    for prompt in PROMPTS:
        row: dict[str, Any] = {"prompt": prompt}
        for chosen in (NO_POLICY, policy):
            with console.status(f"{chosen}: {prompt}"):
                reply = client.images.generate(
                    model=model,
                    prompt=prompt,
                    extra_body={"seed": 1, "guard": {"policy": chosen}},
                )
            for image in reply.data or ():
                verdict = (image.model_extra or {})["guard"]
                row[chosen] = {"png": image.b64_json, "verdict": verdict}
        rows.append(row)
    return rows


def grid(rows: list[Any], policy: str, path: Path) -> None:
    """Write one PNG: bare images above, guarded ones below, each prompt a column."""
    from PIL import Image, ImageDraw

    def image(png: str) -> Image.Image:
        small = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
        return small.resize((small.width * SCALE, small.height * SCALE), Image.Resampling.LANCZOS)

    image_rows = [[image(row[chosen]["png"]) for row in rows] for chosen in (NO_POLICY, policy)]
    side = image_rows[0][0].width
    step = side + _MARGIN
    size = (len(rows) * step + _MARGIN, 2 * (side + _LABEL) + _MARGIN + _LABEL)
    sheet = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)
    for line, (name, images) in enumerate(zip(("bare", policy), image_rows, strict=True)):
        top = _LABEL + line * (side + _LABEL)
        for column, (row, tile) in enumerate(zip(rows, images, strict=True)):
            left = _MARGIN + column * step
            sheet.paste(tile, (left, top))
            verdict = row[policy if line else NO_POLICY]["verdict"]["outcome"]
            pen.text((left, top + side + 4), f"{name}: {verdict}", fill="black")
    for column, row in enumerate(rows):
        pen.text((_MARGIN + column * step, 4), _wrapped(row["prompt"]), fill="black")
    sheet.save(path)


def table(rows: list[Any], policy: str) -> Table:
    """The verdicts under `policy`."""
    result = Table(title=f"the same prompts and seeds, bare and under policy {policy}")
    for column in ("prompt", "verdict", "score", "after", "steps"):
        result.add_column(column)
    for row in rows:
        verdict = row[policy]["verdict"]
        figures: dict[str, Any] = next(iter(verdict["guards"]), {})
        cells = (figures.get("score"), figures.get("after"))
        numbers = ["-" if value is None else f"{value:.3f}" for value in cells]
        steps = str(figures.get("steps") or "-")
        result.add_row(*map(Text, (row["prompt"], verdict["outcome"], *numbers, steps)))
    return result


def _wrapped(text: str, width: int = 32) -> str:
    return "\n".join(textwrap.wrap(text, width)[:2])
