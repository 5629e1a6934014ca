"""Computing a model's profile: layers, statistics, directions and strength."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from classifiers.calibration import threshold_for
from guard.data.bank.bank import digest, reference, templates, topics
from guard.data.prompts import texts
from guard.errors import DataError
from guard.evaluation.fluency import perplexity
from guard.fitting.checkpoints import Checkpoints
from guard.fitting.erasure.profile import (
    About,
    Profile,
    as_tensors,
    from_tensors,
    own_profile,
    profile_path,
)
from guard.fitting.steering.directions import POSITIONS, directions, search
from guard.fitting.steering.gate_search import (
    FittedGate,
    collect_states,
    pairs_of,
    share_over,
)
from guard.fitting.steering.gates import POOL, RetainStatistics, TokenStates
from guard.models.chat import ChatModel, GuardedAnswer
from guard.reporting.progress import Stages
from steering.engines.transformers.offline import nothing
from steering.methods.steer import SteerGuard
from steering.prompt import shared_prefix

SAMPLE = 300
"""Train prompts whose states are kept, for the scale of gates."""
ANSWERED = 300
"""Held-out prompts that are read with their answers."""
ANSWER_TOKENS = 48
FEWEST = 3
"""Reference questions that a model must be able to answer."""
READ, SAID = 512, 96
"""Prompts that are read, and answered, between two checkpoints."""
RECIPE = 1
"""Of what `compute_profile` does: count it up where a change of it makes its parts others, which a
computation that was killed has left behind."""
RATE = 0.01
"""False-positive rate of the gates by which layers are compared."""


def profile_of(chat: ChatModel, progress: Stages, *, again: bool = False) -> Profile:
    """The model's profile in the cache; computed and kept where there is none, or `again`, from
    where an earlier computation was killed. Raises DataError as `compute_profile` does, and
    ArtifactError as `own_profile`."""
    path = profile_path(chat.fitted_model)
    profile = None if again else own_profile(chat.fitted_model)
    if profile is None:
        kept = checkpoints(chat, path, RECIPE, digest())
        profile = compute_profile(chat, progress, kept=kept)
        profile.save(path)
        kept.clear()
    return profile


def checkpoints(chat: ChatModel, target: Path, recipe: int, *data: str) -> Checkpoints:
    """The checkpoints of `target`, which is computed with a model after a recipe of this number,
    from data of these digests."""
    model = chat.fitted_model.fingerprint
    words = (model, chat.precision, chat.device.type, f"recipe-{recipe}", *data)
    return Checkpoints(target, " ".join(words))


def compute_profile(
    chat: ChatModel, progress: Stages, seed: int = 0, kept: Checkpoints | None = None
) -> Profile:
    """The profile of a model; what `kept` has is not computed again. Raises DataError for a model
    that answers too few of the reference questions."""
    kept = kept or Checkpoints(None)
    if there := kept.count:
        progress("going on behind finished parts", there)(there)
    rng = random.Random(seed)
    rows = [row for topic in topics() for row in topic.rows]
    layers = sorted({layer for pair in pairs_of(chat) for layer in pair})
    every = read_prompts(chat, texts(rows), layers, "reading the bank", progress, kept)
    known, unseen = (
        every.of(torch.tensor([row.split == split for row in rows]))
        for split in ("train", "validation")
    )
    sensing = kept.value(
        "sensing-layers", lambda: [*_sensing_layers(chat, layers, known, unseen, progress)]
    )
    pair, recall = tuple(sensing[0]), sensing[1]
    at = [layers.index(layer) for layer in pair]
    statistics = RetainStatistics.of(known, torch.zeros(known.count, dtype=torch.bool), at)
    guard, figures = _acting(chat, pair, progress, kept)
    picked = torch.zeros(known.count, dtype=torch.bool)
    picked[rng.sample(range(known.count), min(SAMPLE, known.count))] = True
    held_out = [row.prompt for row in rows if row.split == "validation"]
    first = held_out[:: max(len(held_out) // ANSWERED, 1)][:ANSWERED]
    answers = _answers(chat, first, "answers to held-out prompts", progress, kept)
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
        answered=_states(
            kept,
            "answered",
            lambda: collect_states(
                chat, chat.given(first), pair, "reading answers", progress, tokens
            ),
        ),
        centres=every.means(at[-1]).view(len(topics()), -1, chat.width).mean(1),
    )


def read_prompts(
    chat: ChatModel,
    prompts: Sequence[str],
    layers: Sequence[int],
    stage: str,
    progress: Stages,
    kept: Checkpoints | None = None,
) -> TokenStates:
    """The states of prompts of text after `layers`, part by part where they are `kept`."""
    given = chat.given(prompts)
    if kept is None:
        return collect_states(chat, given, layers, stage, progress)
    parts, stages = _in_parts(stage, len(given), READ, progress, kept)
    read = []
    for name, rows in parts:
        compute = partial(collect_states, chat, given[rows], layers, stage, stages)
        read.append(_states(kept, name, compute))
    return TokenStates.joined(read, shared_prefix(given))


def _answers(
    chat: ChatModel, prompts: Sequence[str], what: str, progress: Stages, kept: Checkpoints
) -> list[GuardedAnswer]:
    """The bare model's answers, without readings."""
    parts, stages = _in_parts(what, len(prompts), SAID, progress, kept)
    said = []
    for name, rows in parts:
        said += kept.value(name, partial(_said, chat, prompts[rows], what, stages))
    return [GuardedAnswer(text, tuple(tokens), {}) for text, tokens in said]


def _said(
    chat: ChatModel, prompts: Sequence[str], what: str, progress: Stages
) -> list[tuple[str, tuple[int, ...]]]:
    answers = chat.answer(prompts, max_tokens=ANSWER_TOKENS, what=what, progress=progress)
    return [(answer.text, answer.tokens) for answer in answers]


def _in_parts(
    stage: str, count: int, size: int, progress: Stages, kept: Checkpoints
) -> tuple[list[tuple[str, slice]], Stages]:
    """The parts of a stage over `count` prompts, by name, and what shows those that are missing as
    one stage."""
    parts = [
        (f"{stage.replace(' ', '-')}-{first}", slice(first, min(first + size, count)))
        for first in range(0, count, size)
    ]
    missing = sum(rows.stop - rows.start for name, rows in parts if name not in kept)
    advance = progress(stage, missing) if missing else nothing
    return parts, lambda *_: advance


def _states(kept: Checkpoints, part: str, compute: Callable[[], TokenStates]) -> TokenStates:
    return from_tensors(part, kept.tensors(part, lambda: as_tensors(part, compute())))


def _acting(
    chat: ChatModel, pair: tuple[int, ...], progress: Stages, kept: Checkpoints
) -> tuple[SteerGuard, dict[str, float]]:
    """A guard with the directions and layers that silence the reference questions, its strength and
    figures."""
    rows = reference()
    bare = _answers(chat, texts(rows), "reference questions", progress, kept)
    leaked = [i for i, row in enumerate(rows) if row.leaks(bare[i].text)]
    if len(leaked) < FEWEST:
        raise DataError(
            f"the model answers {len(leaked)} of {len(rows)} reference questions: what it would "
            "forget cannot be told from what it does not know"
        )
    known = [rows[i] for i in leaked]
    recalled = [bare[i].tokens[:POSITIONS] for i in leaked]
    found = kept.tensors(
        "directions", lambda: {"all": directions(chat, known, recalled, [], progress)}
    )
    trials, guard = search(
        chat,
        FittedGate(pair, torch.zeros(len(pair), chat.width), 0.0, (), (), ()),
        found["all"],
        known,
        perplexity(chat, [bare[i].tokens for i in leaked]),
        recheck=None,
        max_tokens=ANSWER_TOKENS,
        stop_early=True,
        progress=progress,
        kept=kept,
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
