"""First stages for the fitted example screens, whose heads and thresholds stay as they are.

    python -m examples.screens.first_stages --data data

`guard fit screen` makes one with every head; this is for heads that were fitted before.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from classifiers.text.disguises.views import readings
from classifiers.text.encoder.model import TextEncoder
from examples.screens.data import TOPICS
from examples.screens.fit import FITTED
from guard.artifact import Artifact
from guard.data.prompts import ScreenText, read_rows, texts
from guard.fitting.screens.first_stage import with_first_stage
from guard.fitting.screens.folds import folds_of
from guard.fitting.screens.windows import embed_windows
from guard.models.sources import resolve_source
from guard.reporting.progress import stages


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--fitted", type=Path, default=FITTED)
    arguments = parser.parse_args()
    encoder = TextEncoder.load(resolve_source("minilm"))
    for topic in TOPICS:
        rows = read_rows(arguments.data / f"{topic}.jsonl", ScreenText)
        path = arguments.fitted / f"{topic}.safetensors"
        artifact = Artifact.load(path)
        held_out = artifact.meta.calibration["held_out"]
        assert isinstance(held_out, list)
        with stages() as progress:
            windows = embed_windows(encoder, texts(rows), readings, progress, topic)
        folds = folds_of(rows, [str(source) for source in held_out], seed=0)
        made = with_first_stage(artifact, rows, windows, folds)
        made.save(path)
        report = path.with_suffix(".report.json")
        content = json.loads(report.read_text("utf-8"))
        content |= {
            "settings": made.meta.settings,
            "calibration": made.meta.calibration,
            "tensors_sha256": made.meta.tensors_sha256,
        }
        report.write_text(json.dumps(content, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
