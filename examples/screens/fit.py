"""Fits of the three example screens on the data of `examples.screens.data`.

    python -m examples.screens.fit --data data

Each is a `guard fit screen` with its held-out collections. Artifacts and reports go to `fitted/`;
other options, such as `--kind mlp`, go to `guard fit screen`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from examples.screens.data import HELD_OUT, SYSTEM_PROMPTS, TOPICS

TESTED = (
    *("look-alikes-held-out", "other-look-alikes-held-out"),
    *("everyday-held-out", "software-held-out"),
)
LOOK = {
    # instructions of operators stand in system messages, and what a model says injects nothing
    "prompt-injection": ("user", "assistant", "tool", "arguments", "images"),
    "weapons": (),
    # contacts in results of tools and in answers are data, not requests
    "personal-data-request": ("user", "assistant"),
}
"""The places that a screen is for; all of them where none is named."""
FITTED = Path(__file__).parent / "fitted"


def command(topic: str, data: Path, out: Path, *options: str) -> list[str]:
    """The command line of one fit."""
    fit = [sys.executable, "-m", "guard", "fit", "screen"]
    fit += ["--data", str(data / f"{topic}.jsonl"), "--concept", f"text/{topic}"]
    for source in (*HELD_OUT[topic], *TESTED):
        fit += ["--hold-out", source]
    fit += ["--kind", "kernel", "--learn-only", SYSTEM_PROMPTS]
    for place in LOOK[topic]:
        fit += ["--look", place]
    return [*fit, "--out", str(out / f"{topic}.safetensors"), *options]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=FITTED)
    arguments, options = parser.parse_known_args()
    for topic in TOPICS:
        subprocess.run(command(topic, arguments.data, arguments.out, *options), check=True)


if __name__ == "__main__":
    main()
