"""The first stages of the shipped classifiers: what they cost in recall, and what they save.

    python -m examples.screens.data --out data
    python -m benchmarks.screens.cascade --data data [--texts 200] [--fitted FOLDER] [--json]

Recall: each unsafe text that is left out of a head's fit, read by the encoder alone and with the
first stage of that head in front. Time: streams of 85 % software traffic, 10 % look-alikes and 5 %
unsafe texts, as they are and put together to 200 tokens, all heads at once; one of the whole bank,
from which the stages have learnt, and one of families that they have not seen. Processor time of
everything that a request pays for; each text is read both ways, in random order.

The padded texts are unsafe ones behind everyday questions, of 40 tokens in all; the lured ones have
the words behind them that lower the estimates most: what somebody would try who has read the
artifact.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.screens.shipped import FITTED, TOKENS, Shipped, read_text
from classifiers.embeddings.first_stage import FirstStages
from guard.data.prompts import ScreenText, read_rows

MIX = {"software": 0.85, "look-alikes": 0.10, "unsafe": 0.05}
_PADDED = 40
_LURES = 3
"""Words that are put behind an unsafe text."""
_LURED = 60
"""Unsafe texts of a head to which that is done."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--fitted", type=Path, default=FITTED)
    parser.add_argument("--texts", type=int, default=200, help="of each stream")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    shipped = Shipped.load(arguments.fitted)
    rows = {name: read_rows(arguments.data / f"{name}.jsonl", ScreenText) for name in shipped.names}
    result = {
        "recall": {name: _recall(shipped, head, rows[name]) for head, name in enumerate(rows)},
        "time": _times(shipped, rows, arguments.texts),
    }
    if arguments.json:
        print(json.dumps(result, indent=2))
        return
    for part, by_name in result.items():
        columns = list(next(iter(by_name.values())))
        shown = Table(part, *columns)
        for name, figures in by_name.items():
            shown.add_row(name, *(str(figures[column]) for column in columns))
        Console().print(shown)


def _recall(shipped: Shipped, head: int, rows: Sequence[ScreenText]) -> dict[str, Any]:
    """Counts of held-out texts of a head, of those that fire without the first stage and with."""
    random_order = random.Random(0)
    unsafe = [row.prompt for row in rows if row.unsafe and row.source in shipped.held_out[head]]
    benign = [r for r in rows if not r.unsafe and r.source.endswith("held-out")]
    alone, both = _fire(shipped, head, unsafe)
    figures: dict[str, Any] = {
        "held-out unsafe": len(unsafe),
        "fire": int(alone.sum()),
        "fire, first stage": int(both.sum()),
    }
    short = [text for text in unsafe if len(text) < 250][:_LURED]
    padding = [row.prompt for row in benign if row.source == "everyday-held-out"]
    padded = [_padded(shipped, text, padding, random_order) for text in short]
    lures = " ".join(_lures(shipped, head))
    for kind, texts in (("padded", padded), ("lured", [f"{text} {lures}" for text in short])):
        alone, both = _fire(shipped, head, texts)
        figures |= {kind: len(texts), f"{kind} fire": int(alone.sum())}
        figures[f"{kind} fire, first stage"] = int(both.sum())
    alone, both = _fire(shipped, head, [row.prompt for row in benign])
    figures |= {"benign": len(benign), "benign fire": int(alone.sum())}
    return figures | {"benign fire, first stage": int(both.sum())}


def _fire(shipped: Shipped, head: int, texts: Sequence[str]) -> tuple[Any, Any]:
    threshold = shipped.thresholds[head]
    alone, both = (
        shipped.cascade.scores([read_text(text, heads) for text in texts]).scores[:, head]
        for heads in ((), (head,))
    )
    return alone > threshold, both > threshold


def _padded(shipped: Shipped, text: str, padding: Sequence[str], order: random.Random) -> str:
    parts = [text]
    while len(shipped.offsets("\n".join(parts))) < _PADDED:
        parts.insert(0, order.choice(padding))
    return "\n".join(parts)


def _lures(shipped: Shipped, head: int) -> list[str]:
    """The words of the vocabulary whose estimates are lowest."""
    stage = shipped.stages[head]
    if stage is None:
        return []
    words = [shipped.tokenizer.id_to_token(i) for i in range(shipped.tokenizer.get_vocab_size())]
    alone = [[index] for index in range(len(words))]
    means = shipped.encoder.words.means(alone)
    estimates = FirstStages([stage], [None], [1.0]).estimates(means, alone)[:, 0]
    whole = [index for index in np.argsort(estimates) if words[index].isalpha()]
    return [words[index] for index in whole[:_LURES]]


def _times(
    shipped: Shipped, rows: dict[str, list[ScreenText]], count: int
) -> dict[str, dict[str, Any]]:
    streams = {}
    for name, suffix in (("bank", ""), ("unseen families", "-held-out")):
        kinds = {
            kind: sorted(
                {
                    row.prompt
                    for topic in rows.values()
                    for row in topic
                    if not row.unsafe and row.source == f"{kind}{suffix}"
                }
            )
            for kind in ("software", "look-alikes")
        }
        kinds["unsafe"] = sorted(
            {
                row.prompt
                for head, topic_rows in enumerate(rows.values())
                for row in topic_rows
                if row.unsafe and row.source in shipped.held_out[head]
            }
        )
        drawn = _stream(kinds, count)
        streams[f"{name}, as they are"] = [text for _, text in drawn]
        streams[f"{name}, of {TOKENS} tokens"] = [
            _of_tokens(shipped, kinds[kind], text) for kind, text in drawn
        ]
    return {name: _time(shipped, texts) for name, texts in streams.items()}


def _stream(kinds: dict[str, list[str]], count: int) -> list[tuple[str, str]]:
    order = random.Random(1)
    drawn = [
        (kind, order.choice(kinds[kind]))
        for kind, share in MIX.items()
        for _ in range(round(share * count))
    ]
    order.shuffle(drawn)
    return drawn


def _of_tokens(shipped: Shipped, others: Sequence[str], text: str) -> str:
    """A text with others of its kind behind it, of TOKENS tokens with [CLS] and [SEP]."""
    order = random.Random(text)
    while len(offsets := shipped.offsets(text)) < TOKENS - 2:
        text = f"{text}\n{order.choice(others)}"
    return text[: offsets[TOKENS - 3][1]]


def _time(shipped: Shipped, texts: Sequence[str]) -> dict[str, Any]:
    order = random.Random(2)
    sides = {"encoder alone": (), "cascade": shipped.all_heads}
    spent: dict[str, list[float]] = {side: [] for side in sides}
    cleared = 0
    for text in texts[:5]:
        shipped.cascade.scores([read_text(text, shipped.all_heads)])
    for text in texts:
        for side in order.sample(list(sides), 2):
            began = time.process_time()
            read = shipped.cascade.scores([read_text(text, sides[side])])
            spent[side].append(1000 * (time.process_time() - began))
            cleared += int(side == "cascade" and not read.encoded[0])
    figures: dict[str, Any] = {"texts": len(texts), "not all encoded": cleared}
    for side, milliseconds in spent.items():
        figures |= {
            f"{side}: mean ms": round(statistics.fmean(milliseconds), 2),
            f"{side}: p95": round(float(np.quantile(milliseconds, 0.95)), 2),
            f"{side}: highest": round(max(milliseconds), 2),
        }
    return figures


if __name__ == "__main__":
    main()
