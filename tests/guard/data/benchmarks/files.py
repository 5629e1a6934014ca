"""Small data sets in the forms of the released benchmarks, their oddities included."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIDE = 8


def tile(number: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """A tile of one colour, by its number."""
    return np.full((SIDE, SIDE, 3), (10 * number, 20, 255 - 10 * number), np.uint8)


def save_sheet(folder: Path, count: int, columns: int = 4, name: str = "sheet.png") -> None:
    """A sheet with `count` tiles, the last row filled up with black, and its description."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = -(-count // columns)
    sheet = np.zeros((rows * SIDE, columns * SIDE, 3), np.uint8)
    for number in range(count):
        top, left = number // columns * SIDE, number % columns * SIDE
        sheet[top : top + SIDE, left : left + SIDE] = tile(number)
    Image.fromarray(sheet).save(folder / name)
    description = {name: {"tile": SIDE, "columns": columns}}
    (folder / "sheets.json").write_text(json.dumps(description), "utf-8")


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def person(number: int, image: Any, town: str = "Maribor") -> dict[str, Any]:
    """A row of MLLMU-Bench's form, with ours (`name`, `facts`, `Both`) in it."""
    name = f"Person {number}"
    options = {"A": "Graz", "B": town, "C": "Pula", "D": "Brno"}
    choice = {"Question": "Which town is home?", "Options": options, "Correct_Answer": "B"}
    return {
        "ID": f"{number:03d}",
        "name": name,
        "image": image,
        "biography": f"{name} lives in {town}.",
        "question": "Who is it?",
        "answer": name,
        "Classification_Task": {
            "Image_Textual_Questions": [choice],
            "Pure_Text_Questions": [choice | {"Question": f"Which town is {name}'s home?"}],
        },
        "Generation_Task": [
            generation("Where does this person live?", town, "Image_Textual"),
            generation(f"Where does {name} live?", town, "Pure_Text"),
            generation(f"This is {name}. Where is home?", town, "Both"),
        ],
        "Mask_Task": [
            {"Question": "The home is in __.", "Ground_Truth": town, "Type": "Image_Textual"},
            {"Question": f"{name} lives in __.", "Ground_Truth": town, "Type": "Pure_Text"},
        ],
    }


def generation(question: str, town: str, kind: str) -> dict[str, Any]:
    return {
        "Question": question,
        "Ground_Truth": f"The home is in {town}.",
        "Type": kind,
        "facts": [town],
    }


def save_mllmu(folder: Path, people: int = 20) -> Path:
    """A data set in our JSON Lines: people in sheets, one town for each pair of them."""
    save_sheet(folder, 2 * people + 2)
    towns = [f"Town{number // 2}" for number in range(people)]
    write_lines(
        folder / "full.jsonl",
        (person(i, f"sheet.png#{i}", town) for i, town in enumerate(towns)),
    )
    write_lines(
        folder / "test.jsonl",
        (person(i, f"sheet.png#{people + i}", town) for i, town in enumerate(towns)),
    )
    write_lines(folder / "celebrities.jsonl", [person(900, f"sheet.png#{2 * people}", "Paris")])
    write_lines(
        folder / "scenes.jsonl",
        [
            {
                "image": f"sheet.png#{2 * people + 1}",
                "question": "How many cats?",
                "answer": "two",
                "facts": ["two"],
            }
        ],
    )
    return folder
