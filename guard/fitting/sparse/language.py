"""Fitting guards that take sparse features of a subject out of the residual stream.

Needs torch and a loaded model. The test split is not used.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from guard.data.prompts import AskedRow, ForgetPrompt, RetainPrompt, in_split
from guard.errors import DataError
from guard.fitting.gated.search import Candidate, Fit, searched
from guard.fitting.gated.token_gate import TokenGate
from guard.fitting.sparse.autoencoder import Autoencoders
from guard.fitting.sparse.selection import existing, importance, most_telling, trained
from guard.fitting.sparse.training import Training
from guard.fitting.steering.asking import asked, prompt_of
from guard.fitting.steering.effort import sample
from guard.models.chat import ChatModel
from guard.reporting.progress import Stages
from steering.methods.sparse_features import SparseFeatures
from steering.prompt import shared_prefix

FORGET, RETAIN, ANSWER_TOKENS = 48, 64, 16
"""Prompts of the train split whose answers are read, at most, and their tokens."""
DEPTHS = (0.5, 0.65, 0.8)
"""Shares of the decoder layers after which guards act by default."""
STRENGTHS = (1.0, 3.0)


@dataclass(frozen=True)
class SparseFit:
    """What is asked for: the `autoencoder` file, which is trained where there is none, and must
    have been trained with the settings that are `given`; `erased` features at most at each of the
    `layers` (None: those of the file, or DEPTHS)."""

    autoencoder: Path
    erased: int = 32
    layers: tuple[int, ...] | None = None
    training: Training = field(default_factory=Training)
    given: frozenset[str] = frozenset()


@dataclass(frozen=True, eq=False)
class _States:
    """By layer: `every` own token of the prompts and their answers, and the tokens of which the
    next one is of an answer, of prompts `about` the subject and of `others`."""

    every: Mapping[str, Tensor]
    about: Mapping[str, Tensor]
    others: Mapping[str, Tensor]


def fit_sparse(
    chat: ChatModel,
    forget: Sequence[ForgetPrompt],
    retain: Sequence[RetainPrompt],
    gate: TokenGate,
    request: SparseFit,
    *,
    seed: int = 0,
    progress: Stages,
) -> Fit:
    """Sparse features of the states in front of the bare model's answers to prompts of the subject.

    Raises DataError for layers that the gate cannot act at, where a split has too few prompts, or
    where the bare model leaks on none; and as `existing` and `trained`.
    """
    model = chat.fitted_model
    found = existing(request.autoencoder, model, request.training, request.given)
    layers = _layers(chat, gate, request.layers, found)
    if found is not None:
        found.require_places(map(str, layers), request.autoencoder)
    rng = random.Random(seed)
    states = _read(chat, layers, forget, retain, rng, progress)
    if found is None:
        found = trained(request.autoencoder, model, states.every, request.training, progress)
    ranked, telling = _ranked(found, states, request.erased)
    counts = dict.fromkeys((max(1, request.erased // 4), request.erased))
    guards = [
        _candidate(found, ranked, count, strength) for count in counts for strength in STRENGTHS
    ]
    fit = searched("sparse", chat, forget, gate, guards, rng, progress)
    figures = {place: found.about.figures.get(place, {}) for place in ranked}
    return replace(
        fit, calibration=fit.calibration | {"autoencoder": figures, "activation": telling}
    )


def _layers(
    chat: ChatModel,
    gate: TokenGate,
    asked_for: tuple[int, ...] | None,
    found: Autoencoders | None,
) -> list[int]:
    first = max(gate.sense_layers)
    layers = asked_for
    if layers is None and found is not None:
        layers = tuple(int(place) for place in found.about.places if place.isdecimal())
    if layers is None:
        layers = tuple(max(first, round(share * chat.depth)) for share in DEPTHS)
    wanted = sorted({*layers})
    if not wanted or wanted[0] < first or wanted[-1] >= chat.depth:
        raise DataError(
            f"--layers {','.join(map(str, wanted))}: the gate decides after layer {first} and the "
            f"model has layers 0 to {chat.depth - 1}: give some from {first} on"
        )
    return wanted


def _read(
    chat: ChatModel,
    layers: Sequence[int],
    forget: Sequence[ForgetPrompt],
    retain: Sequence[RetainPrompt],
    rng: random.Random,
    progress: Stages,
) -> _States:
    about = sample(in_split(forget, "train"), FORGET, rng)
    others = sample(in_split(retain, "train"), RETAIN, rng)
    if not about or not others:
        raise DataError("the train split needs a prompt to forget and one to retain, at least")
    rows: tuple[AskedRow, ...] = (*about, *others)
    prompts = [prompt_of(chat, row) for row in rows]
    replies = chat.answer(
        asked(chat, rows), max_tokens=ANSWER_TOKENS, what="bare answers", progress=progress
    )
    sequences = [
        prompt.extended(reply.tokens) for prompt, reply in zip(prompts, replies, strict=True)
    ]
    # what all begin with has states of a size of their own, and tells nothing
    shared = max(shared_prefix(prompts), 1)
    every: list[Tensor] = [torch.empty(0)] * len(rows)
    acted = list(every)
    advance = progress("reading answers", len(sequences))
    for i, states in chat.states(sequences, layers, advance):
        every[i], acted[i] = states[shared:], states[len(prompts[i]) - 1 :]

    def by_layer(parts: Sequence[Tensor]) -> dict[str, Tensor]:
        joined = torch.cat(list(parts))
        return {str(layer): joined[:, i].contiguous() for i, layer in enumerate(layers)}

    count = len(about)
    return _States(by_layer(every), by_layer(acted[:count]), by_layer(acted[count:]))


def _ranked(
    found: Autoencoders, states: _States, count: int
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """By layer the features to erase, the most telling first, and their share of all activations
    on the subject and elsewhere."""
    ranked, telling = {}, {}
    for place in states.about:
        autoencoder = found.by_place[place]
        parts = (states.about[place], states.others[place])
        best = most_telling(importance(autoencoder, *parts), count, f"layer {place}")
        ranked[place] = best
        telling[place] = {
            name: round(float(active[:, best].sum() / active.sum().clamp(min=1e-12)), 4)
            for name, active in zip(
                ("forget", "retain"), map(autoencoder.encode, parts), strict=True
            )
        }
    return ranked, telling


def _candidate(
    found: Autoencoders, ranked: Mapping[str, Tensor], count: int, strength: float
) -> Candidate:
    chosen = {place: index[:count] for place, index in ranked.items()}
    parts = [found.by_place[place].chosen(index).parts for place, index in chosen.items()]
    most = max(len(index) for index in chosen.values())
    reads, offsets, cuts, writes = (
        torch.stack([_filled(part, most) for part in parts_]) for parts_ in zip(*parts, strict=True)
    )
    features = SparseFeatures(reads, offsets, cuts, writes)
    names = ("reads", "offsets", "cuts", "writes")
    settings = {
        "act_layers": [int(place) for place in chosen],
        "features": {place: index.tolist() for place, index in chosen.items()},
    }
    label = f"{most} features at layers {', '.join(chosen)}"
    return Candidate(label, strength, settings, dict(zip(names, features.parts, strict=True)))


def _filled(part: Tensor, rows: int) -> Tensor:
    """`part` with rows of zeros up to `rows`: features that are never active."""
    return torch.cat([part, part.new_zeros(rows - len(part), *part.shape[1:])])
