"""Lists of the concepts' names, and where they find a name: `python -m benchmarks.erasures.lists`.

Three lists of each concept: its names as they are written, with typing errors, and with typing
errors and in other languages, as the model told them to `python -m benchmarks.erasures.leaks`.
Each list reads the questions about its concept and innocent ones: the concept's near misses,
questions about and rewordings of the other concepts, the retain bank. No model is needed.
"""

from __future__ import annotations

import argparse
import json
import tomllib
from collections.abc import Sequence
from itertools import compress
from pathlib import Path

from benchmarks.erasures.__main__ import ANSWER_TOKENS, CONCEPTS
from classifiers.text.patterns.matching import PatternSet
from guard.data.bank.bank import topics
from guard.evaluation.shares import Share
from guard.fitting.erasure import translations
from guard.fitting.erasure.belonging import Belonging
from guard.fitting.erasure.naming import mentions
from guard.fitting.files import names_list
from guard.models.chat import TransformersChat
from guard.reporting.progress import Stages

REWORDINGS = Path(__file__).with_name("rewordings.toml")


def translated(chat: TransformersChat, names: Sequence[str], progress: Stages) -> list[str]:
    """The names of a concept in other languages, asked for as `guard new` does."""
    questions = translations.asked(names[0])
    answers = chat.answer(questions, max_tokens=ANSWER_TOKENS, what="languages", progress=progress)
    found = translations.told((answer.text for answer in answers), names)
    if not found:
        return []
    back = chat.answer(
        translations.back(found), max_tokens=ANSWER_TOKENS, what="leads back", progress=progress
    )
    own = mentions(names)
    return [*compress(found, [own.search(answer.text) for answer in back])]


def lists_of(names: Sequence[str], foreign: Sequence[str]) -> dict[str, PatternSet]:
    """A concept's lists by what they find."""
    name, *aliases = names
    own = Belonging(name, tuple(aliases), (), {}, True)
    abroad = Belonging(name, tuple(aliases), (), {}, True, translations=tuple(foreign))
    as_written = names_list(names).replace("typos = true\n", "")
    return {
        "its names": PatternSet.from_toml(as_written),
        "typing errors": PatternSet.from_toml(names_list(own.listed)),
        "languages": PatternSet.from_toml(names_list(abroad.listed)),
    }


def without(patterns: PatternSet, text: str) -> str:
    """A text without the names of a list."""
    for match in reversed(patterns.find(text)):
        text = text[: match.start] + text[match.end :]
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2", help="whose names in other languages")
    parser.add_argument("--out", type=Path, default=Path("build/erasures"))
    options = parser.parse_args()
    concepts = tomllib.loads(CONCEPTS.read_text("utf-8"))
    words = tomllib.loads(REWORDINGS.read_text("utf-8"))
    told = json.loads((options.out / options.model / "leaks.json").read_text("utf-8"))
    bank = [prompt for topic in topics() if topic.split == "test" for prompt in topic.prompts]
    found: dict[str, list[bool]] = {}
    for name, concept in concepts.items():
        names = (name, *concept.get("aliases", ()))
        others = [other for other in concepts if other != name]
        about = {
            "named": concept["named"],
            "reworded": [each["ask"] for each in words[name]["rewordings"]],
        }
        innocent = {
            "near misses": concept["near"],
            "questions about others": [p for each in others for p in concepts[each]["named"]],
            "rewordings of others": [r["ask"] for o in others for r in words[o]["rewordings"]],
            "retain bank": bank,
        }
        spoken = mentions(names)
        asked = about | {
            way: [prompt for prompt in prompts if not spoken.search(prompt)]
            for way, prompts in innocent.items()
        }
        for how, patterns in lists_of(names, told[name]["translations"]).items():
            for way, prompts in asked.items():
                flags = [bool(patterns.find(prompt)) for prompt in prompts]
                found.setdefault(f"{way}, {how}", []).extend(flags)
                if way in innocent and any(flags):
                    print(f"{name}, {how}: {next(compress(prompts, flags))!r}")
    for case, flags in found.items():
        print(f"{case}: {Share.of(flags)}")


if __name__ == "__main__":
    main()
