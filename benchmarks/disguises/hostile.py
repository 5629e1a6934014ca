"""Processor time of what reads texts, for texts that are made to take long, in every view.

    python -m benchmarks.disguises.hostile [--size 1000000] [--only spaced] [--entities FOLDER]

Each text is one unit, repeated. It is read at its whole size and at a tenth of it: ten times as
much should take ten times as long. FOLDER has a model of entities (`docs/screens.md`); without it
none is read.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from classifiers.text.disguises.unreadable import unreadable
from classifiers.text.disguises.views import readings
from classifiers.text.patterns.matching import PatternSet, shipped

CODECS: Final = (
    *(".- ", "⠁", "alfa ", "1-2-", "01", "01010101 ", "141 ", "=41", "+AGI-", "**a**b", "%u0061"),
    *("<b>a</b>b", "<b", "chr(97)+", '"a"+', '"a",', "{a}", "\\textbf{a}", "a-\n", "=\n", "\\141"),
    *("erpe ", "erpe\n", "exlogdslsherpe\n", "3@>3 ", "aaabbb ", "AbCdEf", "howtomake", "a\n"),
    *("ombay ", "JBXXOIDU", "!9@x%", "aG93 ", "H4sI", "begin 644 a\n", "M", "#0V%T\n", "#0V%T"),
    *(
        "deadbeef01234567\n",
        "6869206869\n",
        "howtomake.",
        "AbCdEf.",
        "how_",
        "how_to_ask_me_all_that ",
        "U+0061",
        '"a "+',
    ),
)
SPELLINGS: Final = (
    *("a", "%", "A", " ", "1", "a ", "a.b ", "%61", "%25", "61", "61 ", "0x61,", "QUFB", "a1"),
    *("a1 ", "gur naq ", "eht htiw ", "&#97;", "\\u0061", "аb", "b\u0336", "\U000e0062"),
    *("QUFBQUFBQUFBQUFB\n", "\u2062\u2064", "\u2062", "\u2062" * 15 + "a"),
)
LISTED: Final = (
    *("@", "a@", "4", "4 ", "1.", "-", "+1", "eyJ", "Password=", "pistol ", "1111 ", "://a:bbb@"),
    *("+49301234567 ", "tel 030123456 ", "-----BEGIN PRIVATE KEY-----", "a.a@", "a@b."),
    *("curl -u ", "mysql x -p", "_auth=aaaaaaaa "),
    *("ghp_aaaaaaaaaaaaaaaa ", "de89370400440532013001 ", "2001:db8::1 ", "born on 1 "),
)
UNREADABLE: Final = ("xqz wvk ", "aB3", "\U0001f600", "яω字", "; ", "aB3" * 20 + "\n")
NAMES: Final = ("(", "_-", "/a", "'s ", "Ab ", "&lt;", "Mr. ")
HOSTILE: Final[Mapping[str, tuple[str, ...]]] = {
    "codecs": CODECS,
    "spellings": SPELLINGS,
    "lists": LISTED,
    "unreadable": UNREADABLE,
    "names": NAMES,
}
"""Units of texts by what they were made for; all of them are read by everything."""
_WORDS: Final = '[[words]]\nlabel = "WEAPON"\nwords = ["pipe bomb", "pistol"]\n'
_TIMES: Final = 10


def main() -> None:
    """Measure, and print a table of the slowest, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=1_000_000, help="characters of a text")
    parser.add_argument("--only", choices=HOSTILE, nargs="+", default=list(HOSTILE))
    parser.add_argument("--entities", type=Path, help="a folder with a model of entities")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    readers = _readers(given.entities)
    rows = [
        row
        for name in given.only
        for unit in HOSTILE[name]
        for row in _measured(unit, given.size, readers)
    ]
    if given.json:
        print(json.dumps(rows, indent=1))
        return
    table = Table("read by", "unit", f"ms for {given.size:,}", "times that of a tenth")
    for row in sorted(rows, key=lambda row: -row["ms"])[:20]:
        table.add_row(row["reader"], repr(row["unit"]), f"{row['ms']:.0f}", f"{row['times']:.1f}")
    Console().print(table)
    for reader in readers:
        of_reader = [row for row in rows if row["reader"] == reader]
        slowest = max(of_reader, key=lambda row: row["ms"])
        steepest = max(of_reader, key=lambda row: row["times"])
        print(
            f"{reader}: at most {slowest['ms']:.0f} ms ({slowest['unit']!r}), at most "
            f"{steepest['times']:.1f} times a tenth ({steepest['unit']!r})"
        )


def _readers(folder: Path | None) -> Mapping[str, Callable[[str], object]]:
    words = PatternSet.from_toml(_WORDS)
    lists = PatternSet.joined([shipped("secrets"), shipped("personal-data")])
    readers: dict[str, Callable[[str], object]] = {
        "shipped lists": lists.find,
        "words in all views": words.find,
        "readings": readings,
        "unreadable": unreadable,
    }
    if folder is not None:
        from classifiers.text.entities.sources import load_entities

        readers["entities"] = load_entities(str(folder), ["PERSON"], None).find
    return readers


def _measured(
    unit: str, size: int, readers: Mapping[str, Callable[[str], object]]
) -> list[dict[str, Any]]:
    rows = []
    for name, read in readers.items():
        small, whole = (
            _milliseconds(read, (unit * (count // len(unit) + 1))[:count])
            for count in (size // _TIMES, size)
        )
        # what takes a millisecond is no measure
        rows.append({"reader": name, "unit": unit, "ms": whole, "times": whole / max(small, 1.0)})
    return rows


def _milliseconds(read: Callable[[str], object], text: str) -> float:
    began = time.process_time_ns()
    read(text)
    return (time.process_time_ns() - began) / 1e6


if __name__ == "__main__":
    main()
