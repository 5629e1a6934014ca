"""How often classifiers fire in other languages than that of their texts, which is English.

    python -m benchmarks.screens.languages [--fitted FOLDER --encoder NAME] [--json]

`languages.json` has ten unsafe and ten benign requests for each screen, written for this and
translated into German, French, Spanish, Chinese and Arabic; no fit has seen them. So few tell
whether a screen reads a language, not how well.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.screens.shipped import FITTED, Shipped, read_text
from classifiers.calibration import auc

TEXTS: dict[str, dict[str, dict[str, list[str]]]] = json.loads(
    Path(__file__).with_name("languages.json").read_text("utf-8")
)
"""By screen, "unsafe" or "benign", and language."""
LANGUAGES = ("en", "de", "fr", "es", "zh", "ar")


def main() -> None:
    """Read the texts, and print a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fitted", type=Path, default=FITTED)
    parser.add_argument("--encoder", default="minilm")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    result = measure(Shipped.load(arguments.fitted, arguments.encoder))
    if arguments.json:
        print(json.dumps(result, indent=2))
        return
    columns = list(next(iter(next(iter(result.values())).values())))
    table = Table("screen", "language", *columns)
    for screen, by_language in result.items():
        for language, figures in by_language.items():
            table.add_row(screen, language, *(str(figures[column]) for column in columns))
    Console().print(table)


def measure(shipped: Shipped) -> dict[str, dict[str, dict[str, Any]]]:
    """By screen and language: counts that fire without the first stage and with it, and the area
    under the curve."""
    return {
        name: {language: _figures(shipped, head, language) for language in LANGUAGES}
        for head, name in enumerate(shipped.names)
    }


def _figures(shipped: Shipped, head: int, language: str) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    scores = {}
    for kind, texts in TEXTS[shipped.names[head]].items():
        read = [read_text(text) for text in texts[language]]
        scores[kind] = shipped.cascade.scores(read).scores[:, head]
        cascaded = shipped.cascade.scores([text._replace(heads=(head,)) for text in read])
        threshold = shipped.thresholds[head]
        figures[f"{kind} fire"] = int(np.sum(scores[kind] > threshold))
        figures[f"{kind} fire, first stage"] = int(np.sum(cascaded.scores[:, head] > threshold))
        figures[f"{kind}, of"] = len(read)
    area = auc(scores["unsafe"].tolist(), scores["benign"].tolist())
    return figures | {"AUC": round(area, 2)}


if __name__ == "__main__":
    main()
