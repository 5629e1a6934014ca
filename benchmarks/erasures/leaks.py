"""Leaks of guards that `python -m benchmarks.erasures` has made, in answers to questions by name:
`python -m benchmarks.erasures.leaks --model smollm2`.

The facts that tell a leak, and ten rewordings of each concept's questions, are in
`rewordings.toml`, written by somebody who had not seen how guards are fitted. Beside the guards
alone: a policy that also has a list of the concept's names (`benchmarks.erasures.lists`), which
blocks a question and takes a name out of an answer. Each concept's figures are kept beside its
guards in `--out`; a run that was interrupted goes on.
"""

from __future__ import annotations

import argparse
import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.erasures.__main__ import CONCEPTS, Guards, leaks_of
from benchmarks.erasures.lists import REWORDINGS, lists_of, translated, without
from classifiers.text.patterns.matching import PatternSet
from guard.data.prompts import ForgetPrompt, texts
from guard.evaluation.fluency import loops
from guard.evaluation.shares import Share
from guard.models.chat import TransformersChat
from guard.reporting.progress import Stages, stages

WAYS = ("named", "reworded")


def rows_of(concept: Mapping[str, Any], words: Mapping[str, Any]) -> dict[str, list[ForgetPrompt]]:
    """A concept's questions by name, and their rewordings, each with the facts that tell a leak."""
    return {
        "named": [
            ForgetPrompt(prompt=prompt, facts=tuple(facts))
            for prompt, facts in zip(concept["named"], words["facts"], strict=True)
        ],
        "reworded": [
            ForgetPrompt(prompt=each["ask"], facts=tuple(each["says"]))
            for each in words["rewordings"]
        ],
    }


def asked(
    chat: TransformersChat,
    guards: Guards,
    rows: Sequence[ForgetPrompt],
    names: Sequence[str],
    lists: Mapping[str, PatternSet],
    progress: Stages,
) -> dict[str, list[bool]]:
    """What becomes of each question: `fired` and `loops` of all, and what `leaks_of` tells; beside
    each of `lists` whether a guard or the list fires, and whether what is left still leaks."""
    answers = guards.asked(chat, texts(rows), progress)
    figures = {
        "fired": [answer.guarded.fired for answer in answers],
        "loops": [loops(answer.guarded.text) for answer in answers],
        **leaks_of(rows, answers, names),
    }
    for how, patterns in lists.items():
        listed = [bool(patterns.find(row.prompt)) for row in rows]
        figures[f"fired or {how}"] = [
            each.guarded.fired or hit for each, hit in zip(answers, listed, strict=True)
        ]
        figures[f"leaks behind {how}"] = [
            not hit and row.leaks(without(patterns, each.guarded.text))
            for row, each, hit in zip(rows, answers, listed, strict=True)
            if row.leaks(each.bare.text)
        ]
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--out", type=Path, default=Path("build/erasures"))
    parser.add_argument("--dtype", default="float32", help="as the guards were made with")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    concepts = tomllib.loads(CONCEPTS.read_text("utf-8"))
    words = tomllib.loads(REWORDINGS.read_text("utf-8"))
    folder = options.out / options.model
    made: dict[str, Any] = json.loads((folder / "results.json").read_text())
    results = folder / "leaks.json"
    done: dict[str, Any] = json.loads(results.read_text()) if results.is_file() else {}
    chat = TransformersChat.load(options.model, dtype=options.dtype)
    with stages() as progress:
        for name, one in made.items():
            if name in done:
                continue
            guards = Guards.of([Path(path) for path in one["artifacts"]], chat)
            names = (name, *concepts[name].get("aliases", ()))
            foreign = translated(chat, names, progress)
            lists = lists_of(names, foreign)
            rows = rows_of(concepts[name], words[name])
            figures = {way: asked(chat, guards, rows[way], names, lists, progress) for way in WAYS}
            done[name] = {"translations": foreign, **figures}
            results.write_text(json.dumps(done, indent=1))
    for way in WAYS:
        for figure in next(iter(done.values()))[way]:
            flags = [flag for one in done.values() for flag in one[way][figure]]
            print(f"{way}, {figure}: {Share.of(flags)}")


if __name__ == "__main__":
    main()
