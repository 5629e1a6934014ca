"""When a steering guard fires: states of all prompts in, gate and threshold out."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from classifiers.calibration import prompts_needed, threshold_for
from guard.data.prompts import ForgetPrompt, RetainPrompt, in_split, texts
from guard.errors import DataError
from guard.fitting.steering.gates import TokenStates, fit_gates
from guard.fitting.steering.wordings import WRAPPERS
from guard.models.chat import ChatModel, GuardedAnswer
from guard.reporting.progress import Stages

DEPTHS = ((0.25, 0.45), (0.25, 0.35), (0.35, 0.45))
"""Pairs of depths (share of the decoder layers) at which a gate is tried."""

WRAPPED_RETAIN = 0.5
"""Share of the retain prompts that are seen once more inside a wrapper; all forget prompts are."""


@dataclass(frozen=True)
class Rates:
    """False-positive rates for a whole request: far retain prompts, near misses.

    Each is split in two halves, one for the prompt's threshold and one for the threshold of
    generated tokens, so that their union keeps the rate.
    """

    far: float
    near: float

    def check(self, retain: Sequence[RetainPrompt]) -> str:
        """What the rates need of the validation split and what is there, in one line.

        Raises DataError where it is too small for them.
        """
        held_out = in_split(retain, "validation")
        said = []
        for rate, kind in ((self.far, "far"), (self.near, "near")):
            needed = prompts_needed(rate / 2)
            have = sum(row.near == (kind == "near") for row in held_out)
            line = (
                f"a false-positive rate of {rate:.2%} needs {needed} {kind} retain prompts in "
                f"the validation split, there are {have}"
            )
            if have < needed:
                raise DataError(f"{line}: add some, or ask for a higher rate")
            said.append(line)
        return "; ".join(said)

    def threshold(self, scores: Sequence[float], near: Sequence[bool]) -> float:
        """The lowest threshold that keeps half of both rates."""
        far_scores = [score for score, is_near in zip(scores, near, strict=True) if not is_near]
        near_scores = [score for score, is_near in zip(scores, near, strict=True) if is_near]
        return max(
            threshold_for(far_scores, self.far / 2), threshold_for(near_scores, self.near / 2)
        )


@dataclass(frozen=True)
class FittedGate:
    """A gate over `layers`, its threshold on prompts, and scores on the validation split."""

    layers: tuple[int, ...]
    gates: Tensor
    threshold: float
    forget: tuple[float, ...]
    far: tuple[float, ...]
    near: tuple[float, ...]

    @property
    def recall(self) -> float:
        """Share of the validation split's forget prompts that it catches."""
        return share_over(self.forget, self.threshold)


def fit_gate(
    chat: ChatModel,
    forget: Sequence[ForgetPrompt],
    retain: Sequence[RetainPrompt],
    rates: Rates,
    rng: random.Random,
    progress: Stages,
) -> FittedGate:
    """Try the pairs of DEPTHS; the one that catches most of the validation split wins."""
    pairs = [tuple(max(round(s * chat.depth) - 1, 0) for s in shares) for shares in DEPTHS]
    layers = sorted({layer for pair in pairs for layer in pair})
    train, held_out = in_split(retain, "train"), in_split(retain, "validation")
    again = [row for row in train if rng.random() < WRAPPED_RETAIN]

    def states(what: str, asked: Sequence[str]) -> TokenStates:
        prompts = [chat.prompt(text).tokens for text in asked]
        return collect_states(chat, prompts, layers, what, progress)

    def wrapped(rows: Sequence[ForgetPrompt] | Sequence[RetainPrompt]) -> list[str]:
        return [rng.choice(WRAPPERS).format(row.prompt) for row in rows]

    positive = in_split(forget, "train")
    heard = states("reading forget prompts", texts(positive) + wrapped(positive))
    kept = states("reading retain prompts", texts(train) + wrapped(again))
    check = states("validation, forget", texts(in_split(forget, "validation")))
    quiet = states("validation, retain", texts(held_out))
    near_train = torch.tensor([row.near for row in (*train, *again)])
    near = [row.near for row in held_out]
    found = []
    for pair in dict.fromkeys(pairs):
        at = [layers.index(layer) for layer in pair]
        gates = fit_gates(heard, kept, near_train, at)
        silent = quiet.pooled(quiet.score(at, gates)).tolist()
        found.append(
            FittedGate(
                layers=pair,
                gates=gates,
                threshold=rates.threshold(silent, near),
                forget=tuple(check.pooled(check.score(at, gates)).tolist()),
                far=tuple(s for s, is_near in zip(silent, near, strict=True) if not is_near),
                near=tuple(s for s, is_near in zip(silent, near, strict=True) if is_near),
            )
        )
    return max(found, key=lambda gate: gate.recall)


def recheck_threshold(
    chat: ChatModel,
    gate: FittedGate,
    rows: Sequence[RetainPrompt],
    spoken: Sequence[GuardedAnswer],
    rates: Rates,
    progress: Stages,
) -> float:
    """The threshold for prompt and answer together, from retain prompts with their own answers.

    Never lower than the prompt's: the score of both together is never the smaller one.
    """
    sequences = [
        [*chat.prompt(r.prompt).tokens, *s.tokens] for r, s in zip(rows, spoken, strict=True)
    ]
    states = collect_states(chat, sequences, gate.layers, "reading retain answers", progress)
    scores = states.pooled(states.score(range(len(gate.layers)), gate.gates)).tolist()
    return max(gate.threshold, rates.threshold(scores, [row.near for row in rows]))


def collect_states(
    chat: ChatModel,
    sequences: Sequence[Sequence[int]],
    layers: Sequence[int],
    what: str,
    progress: Stages,
) -> TokenStates:
    """States of all tokens but each sequence's first, the attention sink, as the runtime reads."""
    shared = _shared_prefix(sequences)
    parts: dict[int, Tensor] = {}
    advance = progress(what, len(sequences))
    for i, states in chat.states(sequences, layers, advance):
        parts[i] = states[1:].half()
    lengths = torch.tensor([len(parts[i]) for i in range(len(sequences))])
    return TokenStates(
        states=torch.cat([parts[i] for i in range(len(sequences))]),
        sequence=torch.repeat_interleave(torch.arange(len(sequences)), lengths),
        own=torch.cat([torch.arange(1, n + 1) >= shared for n in lengths.tolist()]),
        count=len(sequences),
    )


def share_over(scores: Sequence[float], threshold: float) -> float:
    """Share of scores over the threshold."""
    return sum(score > threshold for score in scores) / max(len(scores), 1)


def _shared_prefix(sequences: Sequence[Sequence[int]]) -> int:
    listed = [tuple(sequence) for sequence in sequences]
    low, high = min(listed), max(listed)
    pairs = zip(low, high, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), len(low))
