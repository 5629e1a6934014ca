"""Real scenes for `guard eval m-erasure`: `python -m examples.emoji.m_erasure_scenes`.

Writes PNG files and scenes.jsonl, the same from the same seed: by turns the concept alone and
beside another object. What a judge was taught is drawn from other seeds.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image

from examples.emoji.masks import with_concept
from examples.emoji.scenes import render

HERE = Path(__file__).parent
CONCEPTS = ("knife", "pistol", "bomb", "skull", "santa-claus", "cat", "pizza", "rose", "car")
# the last has no guard of IRECE, but fits are taught it
PLAYED = CONCEPTS[:-1]
SEED = 7_001


def main() -> None:
    """Write the folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=HERE / "m-erasure-scenes")
    parser.add_argument("--count", type=int, default=40, help="of each concept")
    parser.add_argument("--concepts", default=",".join(PLAYED), help=f"of {', '.join(CONCEPTS)}")
    parser.add_argument("--seed", type=int, default=SEED, help="another one for fits")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for concept in given.concepts.split(","):
        # a concept's scenes do not depend on which others are written
        rng = np.random.default_rng([given.seed, CONCEPTS.index(concept)])
        for i in range(given.count):
            scene = with_concept(concept, 1 + i % 2, rng)
            name = f"{concept}-{i:02d}.png"
            Image.fromarray((render(scene) * 255).round().astype(np.uint8)).save(given.out / name)
            kept = [found for found in scene.found if found != concept]
            rows.append({"picture": name, "concept": concept, "kept": kept})
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (given.out / "scenes.jsonl").write_text(lines, "utf-8")


if __name__ == "__main__":
    main()
