"""Prompts of the retain bank for a fit whose own file has too few: nobody has to write all of them.

Far prompts are of topics that the forget prompts do not speak of; near misses are of the topics
whose states lie nearest to those of the forget prompts, as in `guard.fitting.erasure`.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from typing import Literal

import torch

from guard.data.bank.bank import PROMPTS, Topic, topics
from guard.data.prompts import ForgetPrompt, RetainPrompt, in_split
from guard.fitting.steering.asking import prompt_of
from guard.fitting.steering.gate_search import GateRates, collect_states, pairs_of
from guard.models.chat import ChatModel
from guard.reporting.progress import Stages

NEAR = 8
"""Topics of each split that are near misses."""
TRAINED = 2
"""Far prompts of the train split, in multiples of those that the rate needs on validation."""
_READ = 2
"""Prompts of a topic, of which its place is known."""
_FORGET = 64
"""Forget prompts, of which the place of the concept is known."""
_SPLITS: tuple[Literal["train", "validation"], ...] = ("train", "validation")


def check_with_bank(
    forget: Sequence[ForgetPrompt], retain: Sequence[RetainPrompt], rates: GateRates
) -> str:
    """As `GateRates.check`, of these rows and those that the bank can add."""
    held_out = in_split(retain, "validation")
    near = sum(row.near for row in held_out)
    far, added = len(held_out) - near, 0
    free = sum(topic.split == "validation" for topic in _free(forget))
    if near < rates.needed(near=True):
        added = min(NEAR, free)
    if far < rates.needed(near=False):
        far += PROMPTS * (free - added)
    return rates.check_counts(far=far, near=near + PROMPTS * added)


def with_bank(
    chat: ChatModel,
    forget: Sequence[ForgetPrompt],
    retain: Sequence[RetainPrompt],
    rates: GateRates,
    progress: Stages,
) -> list[RetainPrompt]:
    """`retain`, with prompts of the bank in the splits train and validation where its own are too
    few for the rates."""
    rows, free = list(retain), _free(forget)
    held_out = in_split(retain, "validation")
    if sum(row.near for row in held_out) < rates.needed(near=True):
        nearest = _nearest(chat, forget, free, progress)
        for topic in nearest:
            rows += [row.model_copy(update={"kind": "near"}) for row in topic.rows]
        free = [topic for topic in free if topic not in nearest]
    needed = rates.needed(near=False)
    for split in _SPLITS:
        have = sum(not row.near for row in in_split(retain, split))
        if have < needed:
            wanted = (TRAINED if split == "train" else 1) * needed - have
            of_split = [topic for topic in free if topic.split == split]
            rows += list(_in_turn(of_split))[:wanted]
    return rows


def _free(forget: Sequence[ForgetPrompt]) -> list[Topic]:
    """The topics that no forget prompt speaks of, and whose names tell no fact."""
    spoken = "\n".join(row.prompt for row in forget).lower()
    return [
        topic
        for topic in topics()
        if not re.search(rf"(?<!\w){re.escape(topic.name.lower())}(?!\w)", spoken)
        and not any(row.leaks(topic.name) for row in forget)
    ]


def _in_turn(chosen: Sequence[Topic]) -> Iterator[RetainPrompt]:
    """The first prompt of each topic, then the second of each, and so on."""
    of_topics = [topic.rows for topic in chosen]
    for place in range(PROMPTS):
        for rows in of_topics:
            yield rows[place]


def _nearest(
    chat: ChatModel, forget: Sequence[ForgetPrompt], free: Sequence[Topic], progress: Stages
) -> list[Topic]:
    """The NEAR topics of each split whose prompts are nearest to the forget prompts."""
    candidates = [topic for topic in free if topic.split in _SPLITS]
    known = in_split(forget, "train")
    known = random.Random(0).sample(known, min(_FORGET, len(known)))
    prompts = [prompt_of(chat, row) for row in known]
    prompts += chat.given([prompt for topic in candidates for prompt in topic.prompts[:_READ]])
    layer = pairs_of(chat)[0][-1]
    states = collect_states(chat, prompts, [layer], "finding near topics", progress).means(0)
    concept, centres = states[: len(known)].mean(0), states[len(known) :]
    centres = centres.view(len(candidates), _READ, -1).mean(1)
    middle = centres.mean(0)
    close = torch.cosine_similarity(centres - middle, (concept - middle)[None])
    ranked = [candidates[i] for i in close.argsort(descending=True)]
    return [
        topic
        for split in _SPLITS
        for topic in [each for each in ranked if each.split == split][:NEAR]
    ]
