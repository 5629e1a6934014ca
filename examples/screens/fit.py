"""Fits the three example screens on the data that `data.py` has written.

    python -m examples.screens.fit --data data

Each is one `guard fit screen` with its held-out collections. Artifacts and reports go to `fitted/`;
further options are handed on, as `--kind mlp`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from examples.screens.data import HELD_OUT, TOPICS

TESTED = ("look-alikes-held-out", "other-look-alikes-held-out", "everyday-held-out")
FITTED = Path(__file__).parent / "fitted"


def command(topic: str, data: Path, out: Path, *more: str) -> list[str]:
    """The fit of one screen."""
    fit = [sys.executable, "-m", "guard", "fit", "screen"]
    fit += ["--data", str(data / f"{topic}.jsonl"), "--concept", f"text/{topic}"]
    for source in (*HELD_OUT[topic], *TESTED):
        fit += ["--hold-out", source]
    return [*fit, "--out", str(out / f"{topic}.safetensors"), *more]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=FITTED)
    given, more = parser.parse_known_args()
    for topic in TOPICS:
        subprocess.run(command(topic, given.data, given.out, *more), check=True)


if __name__ == "__main__":
    main()
