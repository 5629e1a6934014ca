"""Recall of spans, false spans, and time of one finder of spans."""

from __future__ import annotations

import json
import statistics
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from benchmarks.patterns.benign import Piece, digest
from benchmarks.patterns.contexts import Text
from classifiers.text.patterns.matching import shipped

Found = Sequence[tuple[int, int, str]]
Finder = Callable[[Sequence[str]], tuple[list[Found], float]]
"""The findings in each text, and the seconds of processor time for all of them."""
_SLACK: Final = 3
"""Characters of its surroundings that a span may have too: a quotation mark, a bracket."""
PEERS: Final = ("presidio", "detect-secrets")


@dataclass
class Score:
    """What one finder has found; `per` is by kind and by context, labelled or not."""

    found: dict[str, list[bool]] = field(default_factory=lambda: defaultdict(list))
    per: dict[tuple[str, str, bool], list[bool]] = field(default_factory=lambda: defaultdict(list))
    misses: list[tuple[Text, Found]] = field(default_factory=list)
    false: list[tuple[str, str, str, str]] = field(default_factory=list)
    """Corpus, kind, value, and what stands around it."""
    benign_bytes: int = 0
    ms_per_text: float = 0.0

    @property
    def false_per_100_kb(self) -> float:
        return 100_000 * len(self.false) / max(1, self.benign_bytes)


def ours(texts: Sequence[str]) -> tuple[list[Found], float]:
    """The findings of both shipped lists."""
    lists = [shipped("personal-data"), shipped("secrets")]
    began = time.process_time()
    findings: list[Found] = [
        [(m.start, m.end, m.label) for each in lists for m in each.find(text)] for text in texts
    ]
    return findings, time.process_time() - began


def peer(name: str, python: str) -> Finder:
    """A peer, run by a Python that has it."""

    def find(texts: Sequence[str]) -> tuple[list[Found], float]:
        done = subprocess.run(
            [python, str(Path(__file__).with_name("peers.py")), name],
            input=json.dumps(texts),
            capture_output=True,
            text=True,
            check=True,
        )
        result = json.loads(done.stdout)
        return [[tuple(each) for each in found] for found in result["findings"]], result["seconds"]

    return find


def score(
    finder: Finder,
    texts: Sequence[Text],
    benign: Sequence[Piece],
    prompts: Sequence[str],
    real: Iterable[str],
    *,
    names_kinds: bool,
) -> Score:
    """The score of a finder. A finding counts for any kind where it does not name ours."""
    result, known = Score(), frozenset(real)
    findings, _ = finder([each.text for each in texts])
    for text, found in zip(texts, findings, strict=True):
        hit = any(
            text.start - _SLACK <= start <= text.start
            and text.end <= end <= text.end + _SLACK
            and (not names_kinds or kind == text.kind)
            for start, end, kind in found
        )
        result.found[text.row].append(hit)
        result.per[text.row, text.context, text.labelled].append(hit)
        if not hit:
            result.misses.append((text, found))
    findings, _ = finder([piece.text for piece in benign])
    for piece, found in zip(benign, findings, strict=True):
        result.benign_bytes += len(piece.text.encode())
        for start, end, kind in found:
            value = piece.text[start:end]
            if digest(value) not in known:
                around = piece.text[max(0, start - 60) : end + 40]
                result.false.append((piece.corpus, kind, value, around))
    if prompts:
        runs = [finder(prompts)[1] for _ in range(3)]
        result.ms_per_text = 1000 * statistics.median(runs) / len(prompts)
    return result
