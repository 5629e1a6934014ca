"""What the shipped pattern lists find and miss, beside Presidio and detect-secrets.

    python -m benchmarks.patterns [--count 40] [--peers PYTHON] [--out patterns.html] [--json]

Texts with known spans are made of faker's people of 35 locales, in nine kinds of context, with and
without labels; benign ones are what is installed. PYTHON has `presidio-analyzer` and
`detect-secrets`; without it only our lists are run. Figures are those of the held-out contexts
(`contexts.HELD_OUT`); with `--development` those of the others, which rules are written by.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.patterns.benign import Piece, digest, pieces, reviewed
from benchmarks.patterns.contexts import DEVELOPMENT, HELD_OUT
from benchmarks.patterns.report import page
from benchmarks.patterns.scoring import PEERS, Finder, Score, ours, peer, score
from benchmarks.patterns.texts import made_up

_PROMPT_CHARACTERS = 800
"""About 200 tokens of English."""


def main() -> None:
    """Measure, print tables, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=40, help="texts of a kind in a context")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--benign", type=int, default=1_000_000, help="characters of a corpus")
    parser.add_argument("--development", action="store_true", help="the contexts of the rules")
    parser.add_argument("--peers", help="a Python that has presidio-analyzer and detect-secrets")
    parser.add_argument("--out", type=Path, default=Path("patterns.html"))
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--false", action="store_true", help="print false spans, with digests")
    given = parser.parse_args()
    contexts = DEVELOPMENT if given.development else HELD_OUT
    texts = made_up(list(contexts), given.count, given.seed)
    benign = pieces(given.benign, given.seed)
    prompts = _prompts(benign)
    finders: dict[str, Finder] = {"inference-guard": ours}
    if given.peers:
        finders |= {name: peer(name, given.peers) for name in PEERS}
    real = reviewed()
    scores = {
        name: score(find, texts, benign, prompts, real, names_kinds=find is ours)
        for name, find in finders.items()
    }
    given.out.write_text(page("Patterns: what is found and missed", scores), encoding="utf-8")
    if given.false:
        for name, result in scores.items():
            for corpus, kind, value, around in result.false:
                row = [name, corpus, kind, digest(value), value[:100], around]
                print(json.dumps(row, ensure_ascii=False))
    elif given.json:
        print(json.dumps({name: _figures(result) for name, result in scores.items()}, indent=2))
    else:
        _print(scores, given.out)


def _prompts(benign: list[Piece]) -> list[str]:
    texts = [piece.text[:_PROMPT_CHARACTERS] for piece in benign if piece.corpus == "documentation"]
    return [text for text in texts if len(text) == _PROMPT_CHARACTERS][:60]


def _figures(result: Score) -> dict[str, object]:
    recall = {kind: round(100 * sum(hits) / len(hits), 2) for kind, hits in result.found.items()}
    return {
        "recall_percent": recall,
        "false_per_100_kb": round(result.false_per_100_kb, 3),
        "benign_bytes": result.benign_bytes,
        "ms_per_200_tokens": round(result.ms_per_text, 4),
    }


def _print(scores: dict[str, Score], out: Path) -> None:
    table = Table("", *scores)
    first = next(iter(scores.values()))
    for kind in first.found:
        table.add_row(kind, *(_percent(each.found[kind]) for each in scores.values()))
    rates = (f"{each.false_per_100_kb:.2f}" for each in scores.values())
    table.add_row("false spans in 100 kB", *rates)
    table.add_row("ms for 200 tokens", *(f"{each.ms_per_text:.3f}" for each in scores.values()))
    Console().print(table)
    print(f"{first.benign_bytes / 1e6:.1f} MB of benign text; misses: {out}")


def _percent(hits: list[bool]) -> str:
    return f"{100 * sum(hits) / len(hits):.1f} %"


if __name__ == "__main__":
    main()
