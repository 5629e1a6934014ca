"""Unsafe requests beside harmless text, and harmless texts of many sentences.

    python -m examples.screens.data --out data
    python -m benchmarks.screens.joined --data data [--texts 100] [--fitted FOLDER] [--json]

Short unsafe texts that are left out of a head's fit stand behind, before and between held-out
everyday questions, and beside a thank-you; harmless texts of one kind, held out too, are put
together. Counts of those that fire, by the encoder alone and with the first stage in front.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.screens.shipped import FITTED, Shipped, read_text
from guard.data.prompts import ScreenText, read_rows

UNSAFE = 60
"""Unsafe texts of a head at most."""
LENGTHS = (40, 150, 400)
"""Tokens of a text that is put together."""
_SHORT = 250
"""Characters of a text that is put together with others."""
THANKS = "Thanks a lot for your help, I really appreciate it."
KINDS = {
    "everyday": ("everyday-held-out",),
    "software": ("software-held-out",),
    "look-alikes": ("look-alikes-held-out", "other-look-alikes-held-out"),
    "own look-alikes": ("look-alikes-held-out",),
}


def main() -> None:
    """Read the texts, and print a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--fitted", type=Path, default=FITTED)
    parser.add_argument("--texts", type=int, default=100, help="of each kind and length")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    shipped = Shipped.load(arguments.fitted)
    result = {}
    for head, name in enumerate(shipped.names):
        rows = read_rows(arguments.data / f"{name}.jsonl", ScreenText)
        texts = _unsafe(shipped, head, rows, arguments.texts)
        texts |= _benign(shipped, rows, arguments.texts)
        result[name] = {kind: _fire(shipped, head, part) for kind, part in texts.items()}
    if arguments.json:
        print(json.dumps(result, indent=2))
        return
    table = Table("texts", *shipped.names)
    for kind in next(iter(result.values())):
        found = [result[name][kind] for name in shipped.names]
        table.add_row(kind, *(f"{f['alone']}, {f['first stage']} of {f['of']}" for f in found))
    Console().print(table)


def _unsafe(
    shipped: Shipped, head: int, rows: Sequence[ScreenText], count: int
) -> dict[str, list[str]]:
    order = random.Random(0)
    held_out = shipped.held_out[head]
    unsafe = [r.prompt for r in rows if r.unsafe and r.source in held_out]
    short = [text for text in unsafe if len(text) < _SHORT][: min(UNSAFE, count)]
    questions = [row.prompt for row in rows if row.source == "everyday-held-out"]
    texts: dict[str, list[str]] = {"unsafe": short}
    for length in LENGTHS:
        for place in ("behind", "before", "between"):
            texts[f"unsafe {place} questions, {length} tokens"] = [
                _beside(shipped, text, questions, place, length, order) for text in short
            ]
    texts["unsafe, then a thank-you"] = [f"{text} {THANKS}" for text in short]
    texts["unsafe behind a thank-you"] = [f"{THANKS} {text}" for text in short]
    return texts


def _beside(
    shipped: Shipped,
    text: str,
    questions: Sequence[str],
    place: str,
    length: int,
    order: random.Random,
) -> str:
    missing = length - _tokens(shipped, text)
    parts = _parts(shipped, questions, max(missing, 1), order)
    at = {"behind": len(parts), "before": 0, "between": len(parts) // 2}[place]
    return "\n".join([*parts[:at], text, *parts[at:]])


def _benign(shipped: Shipped, rows: Sequence[ScreenText], count: int) -> dict[str, list[str]]:
    order = random.Random(1)
    texts = {}
    for kind, sources in KINDS.items():
        pool = [r.prompt for r in rows if r.source in sources and len(r.prompt) < _SHORT]
        for length in LENGTHS:
            texts[f"{kind} together, {length} tokens"] = [
                "\n".join(_parts(shipped, pool, length, order)) for _ in range(count)
            ]
    return texts


def _parts(shipped: Shipped, pool: Sequence[str], tokens: int, order: random.Random) -> list[str]:
    """Texts with so many tokens or a few more."""
    parts: list[str] = []
    while tokens > 0:
        parts.append(order.choice(pool))
        tokens -= _tokens(shipped, parts[-1])
    return parts


def _tokens(shipped: Shipped, text: str) -> int:
    return len(shipped.offsets(text))


def _fire(shipped: Shipped, head: int, texts: Sequence[str]) -> dict[str, Any]:
    threshold = shipped.thresholds[head]
    counts = [
        int((shipped.cascade.scores(read).scores[:, head] > threshold).sum())
        for read in ([read_text(t, heads) for t in texts] for heads in ((), (head,)))
    ]
    return {"of": len(texts), "alone": counts[0], "first stage": counts[1]}


if __name__ == "__main__":
    main()
