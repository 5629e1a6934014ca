"""Computing a model's profile: layers, statistics, directions and strength."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import torch

from classifiers.calibration import threshold_for
from guard.data.bank.bank import digest, reference, templates, topics
from guard.data.prompts import texts
from guard.errors import DataError
from guard.evaluation.fluency import perplexity
from guard.fitting.erasure.profile import About, Profile, own_profile, profile_path
from guard.fitting.steering.directions import POSITIONS, directions, search
from guard.fitting.steering.gate_search import (
    FittedGate,
    collect_states,
    pairs_of,
    share_over,
)
from guard.fitting.steering.gates import POOL, RetainStatistics, TokenStates
from guard.models.chat import ChatModel
from guard.reporting.progress import Stages
from steering.methods.steer import SteerGuard

SAMPLE = 300
"""Train prompts whose states are kept, for the scale of gates."""
ANSWERED = 300
"""Held-out prompts that are read with their answers."""
ANSWER_TOKENS = 48
FEWEST = 3
"""Reference questions that a model must be able to answer."""
RATE = 0.01
"""False-positive rate of the gates by which layers are compared."""


def profile_of(chat: ChatModel, progress: Stages, *, again: bool = False) -> Profile:
    """The model's profile in the cache; computed and kept where there is none, or `again`. Raises
    DataError as `compute_profile` does, and ArtifactError as `own_profile`."""
    profile = None if again else own_profile(chat.fitted_model)
    if profile is None:
        profile = compute_profile(chat, progress)
        profile.save(profile_path(chat.fitted_model))
    return profile


def compute_profile(chat: ChatModel, progress: Stages, seed: int = 0) -> Profile:
    """The profile of a model. Raises DataError for one that answers too few of the reference
    questions."""
    rng = random.Random(seed)
    rows = [row for topic in topics() for row in topic.rows]
    layers = sorted({layer for pair in pairs_of(chat) for layer in pair})
    every = read_prompts(chat, texts(rows), layers, "reading the bank", progress)
    known, unseen = (
        every.of(torch.tensor([row.split == split for row in rows]))
        for split in ("train", "validation")
    )
    pair, recall = _sensing_layers(chat, layers, known, unseen, progress)
    at = [layers.index(layer) for layer in pair]
    statistics = RetainStatistics.of(known, torch.zeros(known.count, dtype=torch.bool), at)
    guard, figures = _acting(chat, pair, progress)
    picked = torch.zeros(known.count, dtype=torch.bool)
    picked[rng.sample(range(known.count), min(SAMPLE, known.count))] = True
    held_out = [row.prompt for row in rows if row.split == "validation"]
    first = held_out[:: max(len(held_out) // ANSWERED, 1)][:ANSWERED]
    answers = chat.answer(
        first, max_tokens=ANSWER_TOKENS, what="answers to held-out prompts", progress=progress
    )
    tokens = [answer.tokens for answer in answers]
    return Profile(
        about=About(
            model=chat.fitted_model,
            bank=digest(),
            sense_layers=pair,
            act_layers=guard.act_layers,
            strength=figures.pop("strength"),
            weight=statistics.weight,
            figures={"reference_recall": recall} | figures,
        ),
        statistics=replace(statistics, picked=tuple(range(len(pair)))),
        directions=guard.directions[0],
        sample=_at(known.of(picked), at),
        held_out=_at(unseen, at),
        answered=collect_states(chat, chat.given(first), pair, "reading answers", progress, tokens),
        centres=every.means(at[-1]).view(len(topics()), -1, chat.width).mean(1),
    )


def read_prompts(
    chat: ChatModel, prompts: Sequence[str], layers: Sequence[int], stage: str, progress: Stages
) -> TokenStates:
    """The states of prompts of text after `layers`."""
    return collect_states(chat, chat.given(prompts), layers, stage, progress)


def _acting(
    chat: ChatModel, pair: tuple[int, ...], progress: Stages
) -> tuple[SteerGuard, dict[str, float]]:
    """A guard with the directions and layers that silence the reference questions, its strength and
    figures."""
    rows = reference()
    bare = chat.answer(
        texts(rows), max_tokens=ANSWER_TOKENS, what="reference questions", progress=progress
    )
    leaked = [i for i, row in enumerate(rows) if row.leaks(bare[i].text)]
    if len(leaked) < FEWEST:
        raise DataError(
            f"the model answers {len(leaked)} of {len(rows)} reference questions: what it would "
            "forget cannot be told from what it does not know"
        )
    known = [rows[i] for i in leaked]
    recalled = [bare[i].tokens[:POSITIONS] for i in leaked]
    trials, guard = search(
        chat,
        FittedGate(pair, torch.zeros(len(pair), chat.width), 0.0, (), (), ()),
        directions(chat, known, recalled, [], progress),
        known,
        perplexity(chat, [bare[i].tokens for i in leaked]),
        recheck=None,
        max_tokens=ANSWER_TOKENS,
        stop_early=True,
        progress=progress,
    )
    chosen = next(trial for trial in trials if trial.chosen)
    return guard, {
        "strength": chosen.strength,
        "reference_known": len(leaked) / len(rows),
        "reference_leak_rate": chosen.leak_rate,
        "reference_loops": chosen.looping,
    }


def _sensing_layers(
    chat: ChatModel,
    layers: Sequence[int],
    known: TokenStates,
    unseen: TokenStates,
    progress: Stages,
) -> tuple[tuple[int, ...], float]:
    """The pair of layers whose gates of the reference concepts fire on the most of the reference
    questions, and that share."""
    rows = reference()
    concepts = list(dict.fromkeys(row.subject for row in rows))
    about = [[each.replace("{t}", name) for each in templates()["any"]] for name in concepts]
    shown = read_prompts(chat, sum(about, []), layers, "reading reference concepts", progress)
    asked = read_prompts(chat, texts(rows), layers, "reading reference questions", progress)
    owner = torch.tensor([i for i, texts_of in enumerate(about) for _ in texts_of])
    plain = torch.zeros(known.count, dtype=torch.bool)
    best: tuple[tuple[int, ...], float] = ((), -1.0)
    for pair in pairs_of(chat):
        at = [layers.index(layer) for layer in pair]
        statistics = RetainStatistics.of(known, plain, at)
        caught = []
        for i, concept in enumerate(concepts):
            gate = statistics.gate(shown.of(owner == i))[None]
            scores = unseen.scores(at, gate, POOL)[0].tolist()
            level = threshold_for(scores, RATE)
            own = asked.of(torch.tensor([row.subject == concept for row in rows]))
            caught.append(share_over(own.scores(at, gate, POOL)[0].tolist(), level))
        recall = sum(caught) / len(caught)
        if recall > best[1]:
            best = (pair, recall)
    return best


def _at(states: TokenStates, layers: Sequence[int]) -> TokenStates:
    return replace(states, states=states.states[:, list(layers)].contiguous(), last=None)
