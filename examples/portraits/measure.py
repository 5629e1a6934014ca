"""Figures of the bare model: `python -m examples.portraits.measure` writes measured.json.

Wordings and portraits are those that no training has used; answers are greedy, and right where they
are the fact, word for word. Chance is the share of the commonest answer to the same question.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from examples.emoji import scenes
from examples.portraits import images, questions
from examples.portraits.draw import TEST, TRAIN
from examples.portraits.people import HERE, people
from examples.portraits.questions import Question
from guard.evaluation.shares import Share
from guard.models.chat import TransformersChat
from guard.reporting.progress import stages

WAYS = ("portrait", "name", "both")
SCENES = 200
TOKENS = 24


@dataclass(frozen=True)
class Case:
    """A question with its image, `[96, 96, 3]` uint8, in the `group` that it counts for."""

    group: str
    question: Question
    image: Any | None


def cases(seed: int) -> list[Case]:
    """Two questions about each person in each way, and three about each scene."""
    rng = np.random.default_rng(seed)
    listed = []
    for person in people():
        kind = "private" if person.private else "celebrities"
        for way in WAYS:
            for _ in range(2):
                image = None
                if way != "name":
                    drawn = images.portrait(person.number, TRAIN + int(rng.integers(TEST)), rng)
                    image = np.asarray(drawn)
                question = questions.asked(person, way, rng, test=True)
                listed.append(Case(f"{kind}, by {way}", question, image))
    for _ in range(SCENES):
        scene = scenes.loose(int(rng.integers(1, 4)), rng)
        image = np.asarray(images.scene(scene))
        for _ in range(3):
            question = questions.about_scene(scene, rng, test=True)
            listed.append(Case(f"scenes, {question.attribute}", question, image))
    return listed


def measure(chat: TransformersChat, seed: int) -> dict[str, dict[str, float]]:
    """For each group the share of right answers, its 95 % interval, chance and the count."""
    asked = cases(seed)
    prompts = [chat.prompt(c.question.text, [] if c.image is None else [c.image]) for c in asked]
    with stages() as progress:
        answers = chat.answer(prompts, max_tokens=TOKENS, what="answers", progress=progress)
    right: dict[str, list[bool]] = {}
    facts: dict[str, dict[str, Counter[str]]] = {}
    for case, answer in zip(asked, answers, strict=True):
        hit = answer.text.strip().rstrip(".").casefold() == case.question.fact.casefold()
        right.setdefault(case.group, []).append(hit)
        of_group = facts.setdefault(case.group, {})
        of_group.setdefault(case.question.attribute, Counter())[case.question.fact] += 1
    figures = {}
    for group, hits in right.items():
        share = Share.of(hits)
        low, high = share.interval
        guessed = sum(counts.most_common(1)[0][1] for counts in facts[group].values())
        figures[group] = {
            "right": round(share.value, 4),
            "low": round(low, 4),
            "high": round(high, 4),
            "chance": round(guessed / len(hits), 4),
            "questions": len(hits),
        }
    return figures


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="portraits")
    parser.add_argument("--out", type=Path, default=HERE / "measured.json")
    parsed = parser.parse_args()
    result = measure(TransformersChat.load(parsed.model), seed=9)
    parsed.out.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    print(json.dumps(result, indent=1))
