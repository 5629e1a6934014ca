"""How often the injection screen fires on a framework that its fit has not seen.

    python -m benchmarks.screens.frameworks.left_out --data data --sent FILE [--json]

`data` is what `examples.screens.data --frameworks` has written, FILE what
`benchmarks.screens.frameworks --sent` has kept. For each framework the screen is fitted as
`examples.screens.fit` does, without that framework's texts and without others' texts that nearly
repeat one of them, and reads its requests in the server's own way, the first stage in front. A row
gives the texts on which it fires, and what the fit does on the held-out collections: unsafe texts
that fire by themselves, and as one sentence among others, look-alikes of its topic that fire, and
benign texts of all kinds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.screens.frameworks.capture import read_sent
from benchmarks.screens.frameworks.reading import Read, plans_of, read
from benchmarks.screens.frameworks.upstream import Sent
from classifiers.text.disguises.views import readings
from classifiers.text.encoder.model import TextEncoder
from examples.screens.data import HELD_OUT, SYSTEM_PROMPTS, apart, framework_family
from examples.screens.fit import LOOK, TESTED
from guard.artifact import Artifact
from guard.config.policy_schema import PLACES
from guard.data.prompts import ScreenText, read_rows, texts
from guard.fitting.screens.fit import ScreenFit, ScreenRecipe, fit_screen
from guard.fitting.screens.windows import embed_windows
from guard.models.sources import resolve_source
from guard.reporting.progress import stages
from server.screening.texts.screener import Screener

TOPIC: Final = "prompt-injection"
_RECIPE: Final = ScreenRecipe(
    kind="kernel",
    learn_only=(SYSTEM_PROMPTS,),
    look=tuple(place for place in PLACES if place in LOOK[TOPIC]),
)
_FIGURES: Final = ("unsafe", "beside", "look-alikes", "benign")


def main() -> None:
    """Fit without each framework in turn, and print a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sent", type=Path, required=True)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    sent = read_sent(given.sent)
    rows = read_rows(given.data / f"{TOPIC}.jsonl", ScreenText)
    if missing := {*map(framework_family, sent)} - {row.family for row in rows}:
        parser.error(f"{given.data} has nothing of {', '.join(sorted(missing))}")
    encoder = TextEncoder.load(Path(resolve_source("minilm")))
    results: dict[str, tuple[Read, dict[str, str]]] = {}
    with stages() as progress:
        windows = embed_windows(encoder, texts(rows), readings, progress, "reading texts")
        for name, requests in sent.items():
            kept = without(name, rows)
            fit = fit_screen(
                *(encoder, [rows[index] for index in kept], f"text/{TOPIC}"),
                *([*HELD_OUT[TOPIC], *TESTED], _RECIPE, readings, progress, ""),
                windows.of_texts(np.array(kept, np.intp)),
            )
            results[name] = asyncio.run(_served(fit.artifact, requests)), _held_out(fit)
    _print(results, as_json=given.json)


def without(name: str, rows: Sequence[ScreenText]) -> list[int]:
    """The rows of a fit that knows nothing of a framework."""
    own = [row.prompt for row in rows if row.family == framework_family(name)]

    def unknown(row: ScreenText) -> bool:
        of_a_framework = row.family.startswith(framework_family(""))
        return not of_a_framework or bool(apart([row.prompt], own))

    return [index for index, row in enumerate(rows) if unknown(row)]


async def _served(artifact: Artifact, requests: Sequence[Sent]) -> Read:
    """What a server with this screen alone reads, in the places that it is for."""
    with tempfile.TemporaryDirectory() as folder:
        artifact.save(Path(folder) / f"{TOPIC}.safetensors")
        plans = plans_of(Path(folder))
    screener = Screener(plans.cascade)
    result = await read(requests, plans["as_fitted"], screener)
    screener.close()
    return result


def _held_out(fit: ScreenFit) -> dict[str, str]:
    assert fit.test is not None
    beside: Any = fit.artifact.meta.calibration["sentences"]
    shares = fit.test.figures()
    counts = (
        shares["recall"]["all"],
        beside["recall_beside_other_text"]["held_out"],
        shares["false_positives"]["look-alikes-held-out"],
        shares["false_positives"]["all"],
    )
    return {
        name: f"{each['count']}/{each['total']}"
        for name, each in zip(_FIGURES, counts, strict=True)
    }


def _print(results: Mapping[str, tuple[Read, dict[str, str]]], *, as_json: bool) -> None:
    together: dict[str, bool] = {}
    for each, _ in results.values():
        for text, fired in each.texts[TOPIC].items():
            together[text] = fired or together.get(text, False)
    rows = {name: (each.texts[TOPIC], held_out) for name, (each, held_out) in results.items()}
    if as_json:
        content = {
            name: {"texts": len(read_texts), "fired": [t for t in read_texts if read_texts[t]]}
            | held_out
            for name, (read_texts, held_out) in [*rows.items(), ("all", (together, {}))]
        }
        print(json.dumps(content, indent=2, ensure_ascii=False))
        return
    table = Table("left out", "fires", *_FIGURES)
    for name, (read_texts, held_out) in [*rows.items(), ("all", (together, {}))]:
        table.add_row(name, f"{sum(read_texts.values())}/{len(read_texts)}", *held_out.values())
    Console().print(table)


if __name__ == "__main__":
    main()
