"""The search for a steering guard's gate, layers and threshold, from the states of all prompts."""

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
"""Share of the retain prompts that are also used inside a wrapper; all forget prompts are."""


@dataclass(frozen=True)
class Rates:
    """False-positive rates for a whole request, on far retain prompts and on near misses.

    Half of each is for the prompt's threshold and half for the threshold of generated tokens, so
    that both together keep the rate.
    """

    far: float
    near: float

    def check(self, retain: Sequence[RetainPrompt]) -> str:
        """How many prompts the rates need in the validation split and how many there are, one line.

        Raises DataError if there are too few.
        """
        held_out = in_split(retain, "validation")
        lines = []
        for rate, kind in ((self.far, "far"), (self.near, "near")):
            needed = prompts_needed(rate / 2)
            have = sum(row.near == (kind == "near") for row in held_out)
            line = (
                f"a false-positive rate of {rate:.2%} needs {needed} {kind} retain prompts in "
                f"the validation split, there are {have}"
            )
            if have < needed:
                raise DataError(f"{line}: add some, or ask for a higher rate")
            lines.append(line)
        return "; ".join(lines)

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
        """Share of the validation split's forget prompts that fire."""
        return share_over(self.forget, self.threshold)


def fit_gate(
    chat: ChatModel,
    forget: Sequence[ForgetPrompt],
    retain: Sequence[RetainPrompt],
    rates: Rates,
    rng: random.Random,
    progress: Stages,
) -> FittedGate:
    """The gate of the pair of DEPTHS with the highest recall on the validation split."""
    pairs = [tuple(max(round(s * chat.depth) - 1, 0) for s in shares) for shares in DEPTHS]
    layers = sorted({layer for pair in pairs for layer in pair})
    train, held_out = in_split(retain, "train"), in_split(retain, "validation")
    wrapped_retain = [row for row in train if rng.random() < WRAPPED_RETAIN]

    def states(stage: str, prompt_texts: Sequence[str]) -> TokenStates:
        prompts = [chat.prompt(text).tokens for text in prompt_texts]
        return collect_states(chat, prompts, layers, stage, progress)

    def wrapped(rows: Sequence[ForgetPrompt] | Sequence[RetainPrompt]) -> list[str]:
        return [rng.choice(WRAPPERS).format(row.prompt) for row in rows]

    positive = in_split(forget, "train")
    forget_states = states("reading forget prompts", texts(positive) + wrapped(positive))
    retain_states = states("reading retain prompts", texts(train) + wrapped(wrapped_retain))
    validation_forget = states("validation, forget", texts(in_split(forget, "validation")))
    validation_retain = states("validation, retain", texts(held_out))
    near_train = torch.tensor([row.near for row in (*train, *wrapped_retain)])
    near = [row.near for row in held_out]
    candidates = []
    for pair in dict.fromkeys(pairs):
        indices = [layers.index(layer) for layer in pair]
        gates = fit_gates(forget_states, retain_states, near_train, indices)
        scores = validation_retain.pooled(validation_retain.score(indices, gates)).tolist()
        candidates.append(
            FittedGate(
                layers=pair,
                gates=gates,
                threshold=rates.threshold(scores, near),
                forget=tuple(
                    validation_forget.pooled(validation_forget.score(indices, gates)).tolist()
                ),
                far=tuple(s for s, is_near in zip(scores, near, strict=True) if not is_near),
                near=tuple(s for s, is_near in zip(scores, near, strict=True) if is_near),
            )
        )
    return max(candidates, key=lambda gate: gate.recall)


def recheck_threshold(
    chat: ChatModel,
    gate: FittedGate,
    rows: Sequence[RetainPrompt],
    answers: Sequence[GuardedAnswer],
    rates: Rates,
    progress: Stages,
) -> float:
    """The threshold for prompt and answer together, from retain prompts with the bare answers.

    It is never lower than the prompt's threshold, since the joint score is never smaller.
    """
    sequences = [
        [*chat.prompt(row.prompt).tokens, *answer.tokens]
        for row, answer in zip(rows, answers, strict=True)
    ]
    states = collect_states(chat, sequences, gate.layers, "reading retain answers", progress)
    scores = states.pooled(states.score(range(len(gate.layers)), gate.gates)).tolist()
    return max(gate.threshold, rates.threshold(scores, [row.near for row in rows]))


def collect_states(
    chat: ChatModel,
    sequences: Sequence[Sequence[int]],
    layers: Sequence[int],
    stage: str,
    progress: Stages,
) -> TokenStates:
    """States of all tokens but each sequence's first, the attention sink, as the runtime does."""
    shared = _shared_prefix(sequences)
    parts: dict[int, Tensor] = {}
    advance = progress(stage, len(sequences))
    for i, states in chat.states(sequences, layers, advance):
        parts[i] = states[1:].half()
    lengths = torch.tensor([len(parts[i]) for i in range(len(sequences))])
    return TokenStates(
        states=torch.cat([parts[i] for i in range(len(sequences))]),
        sequence=torch.repeat_interleave(torch.arange(len(sequences)), lengths),
        behind_prefix=torch.cat([torch.arange(1, n + 1) >= shared for n in lengths.tolist()]),
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
