"""Real scenes for `guard eval m-erasure`: `python -m examples.emoji.m_erasure_scenes`.

Writes PNG files and scenes.jsonl, the same for the same seed: the concept alone and beside another
object in turn. The training scenes of the judges have other seeds.
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
# the last one has no IRECE guard, but fits need its scenes
EVALUATED = CONCEPTS[:-1]
SEED = 7_001


def main() -> None:
    """Write the folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=HERE / "m-erasure-scenes")
    parser.add_argument("--count", type=int, default=40, help="of each concept")
    parser.add_argument("--concepts", default=",".join(EVALUATED), help=f"of {', '.join(CONCEPTS)}")
    parser.add_argument("--seed", type=int, default=SEED, help="choose another one for fits")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for concept in arguments.concepts.split(","):
        # the scenes of a concept do not depend on the other concepts of the call
        rng = np.random.default_rng([arguments.seed, CONCEPTS.index(concept)])
        for i in range(arguments.count):
            scene = with_concept(concept, 1 + i % 2, rng)
            file = f"{concept}-{i:02d}.png"
            Image.fromarray((render(scene) * 255).round().astype(np.uint8)).save(
                arguments.out / file
            )
            kept = [name for name in scene.names if name != concept]
            rows.append({"picture": file, "concept": concept, "kept": kept})
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (arguments.out / "scenes.jsonl").write_text(lines, "utf-8")


if __name__ == "__main__":
    main()
