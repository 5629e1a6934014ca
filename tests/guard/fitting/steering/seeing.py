"""A tiny vision-language model and the files of two people, for the tests of fits with images.

Random weights know nobody: every answer counts as a leak. Portraits of a person are noise around
one colour.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from guard.models.chat import TransformersChat
from tests.guard.fitting.rebinding.copies import silent
from tests.steering.tiny_vision import SIDE, save, tiny_vision

__all__ = ["ASKED", "COLOURS", "portrait", "seeing_chat", "silent", "write_people"]

COLOURS = {"w70": (250, 20, 20), "w71": (20, 20, 250)}
"""The people who are forgotten, by name."""
OTHERS = ((20, 250, 20), (200, 200, 20), (120, 120, 120), (20, 200, 200))
SPLITS = ("train", "validation", "test")
ASKED = ("w10 w11", "w12 w13", "w14 w15")


def portrait(colour: tuple[int, ...], seed: int) -> NDArray[np.uint8]:
    """A portrait, uint8 `[SIDE, SIDE, 3]`."""
    noise = np.random.default_rng(seed).integers(-4, 5, (SIDE, SIDE, 3))
    return (np.array(colour) + noise).clip(0, 255).astype(np.uint8)


def seeing_chat(folder: Path) -> TransformersChat:
    """A model that sees, from `folder`, where it is saved first."""
    if not folder.exists():
        save(tiny_vision("llava"), "llava", folder)
    return TransformersChat.load(str(folder), device="cpu")


def write_people(folder: Path, rounds: int = 4) -> None:
    """forget.jsonl and retain.jsonl with their portraits: everybody by portrait and by name."""
    folder.mkdir()
    number = 0

    def row(colour: tuple[int, ...], name: str, **more: Any) -> list[dict[str, Any]]:
        nonlocal number
        rows = []
        for text in ASKED * rounds:
            number += 1
            file, split = f"{number}.png", SPLITS[number % 3]
            Image.fromarray(portrait(colour, number)).save(folder / file)
            more_words = f"w{20 + number % 4}"
            rows.append({"prompt": f"{text} {more_words}", "image": file, **more})
            rows.append({"prompt": f"{text} {name} {more_words}", **more})
            rows[-1]["split"] = rows[-2]["split"] = split
        return rows

    forget = [
        each
        for name, colour in COLOURS.items()
        for each in row(colour, name, pattern="w", subject=name)
    ]
    retain = []
    for i, colour in enumerate(OTHERS):
        kind = "near" if i % 2 else "far"
        retain += row(colour, f"w{72 + i}", kind=kind)
    for name, rows in (("forget", forget), ("retain", retain)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
