"""The search for a steering guard's gate, layers and threshold, from the states of all prompts."""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from classifiers.calibration import prompts_needed, threshold_for
from guard.data.prompts import ForgetPrompt, RetainPrompt, in_split
from guard.errors import DataError
from guard.fitting.steering.altered import altered
from guard.fitting.steering.asking import prompt_of
from guard.fitting.steering.gates import RetainStatistics, TokenStates, pool_of
from guard.fitting.steering.wordings import WRAPPERS
from guard.models.chat import ChatModel, GuardedAnswer
from guard.reporting.progress import Stages
from steering.hidden.bank import TOKENS, Tokens
from steering.prompt import Prompt, shared_prefix

R = TypeVar("R", ForgetPrompt, RetainPrompt)

DEPTHS = ((0.25, 0.45), (0.25, 0.35), (0.35, 0.45))
"""Pairs of depths (share of the decoder layers) at which a gate is tried."""

IMAGE_DEPTHS = (*DEPTHS, (0.35, 0.55))
"""The same where prompts have images: who is in one is known later than what a name says."""

WRAPPED_RETAIN = 0.5
"""Share of the retain prompts that are also used inside a wrapper and with altered images; all
forget prompts are."""

ALTERED = 2
"""How often prompts with images are used with altered ones: images vary more than texts do."""

NO_IMAGES = (
    "--tokens image: needs images in the forget and in the retain prompts of the train split"
)

ROUNDING = 0.01
"""Deviations of the retain scores by which a threshold is raised."""


@dataclass(frozen=True)
class GateRates:
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
        near = sum(row.near for row in held_out)
        return self.check_counts(far=len(held_out) - near, near=near)

    def check_counts(self, *, far: int, near: int) -> str:
        """The same by the numbers of prompts of each kind."""
        lines = []
        for rate, kind, have, option in (
            (self.far, "far", far, "--fpr"),
            (self.near, "near", near, "--near-fpr"),
        ):
            needed = self.needed(near=kind == "near")
            line = (
                f"a false-positive rate of {rate:.2%} needs {needed} {kind} retain prompts in "
                f"the validation split, there are {have}"
            )
            if have < needed:
                raise DataError(f"{line}: add some, or fit with a higher {option}")
            lines.append(line)
        return "; ".join(lines)

    def needed(self, *, near: bool) -> int:
        """The fewest held-out prompts of a kind for half of its rate."""
        return prompts_needed((self.near if near else self.far) / 2)

    def threshold(self, scores: Sequence[float], near: Sequence[bool]) -> float:
        """The lowest threshold that keeps half of both rates, `raised`."""
        far_scores = [score for score, is_near in zip(scores, near, strict=True) if not is_near]
        near_scores = [score for score, is_near in zip(scores, near, strict=True) if is_near]
        threshold = max(
            threshold_for(far_scores, self.far / 2), threshold_for(near_scores, self.near / 2)
        )
        return raised(threshold, scores)


def raised(threshold: float, scores: Sequence[float]) -> float:
    """`threshold`, a little higher: a score at the threshold, of states that were kept in half
    precision, is another one when it is served."""
    return threshold + ROUNDING * statistics.pstdev(scores)


@dataclass(frozen=True)
class FittedGate:
    """A gate over `layers`, its threshold on prompts, and scores on the validation split."""

    layers: tuple[int, ...]
    gates: Tensor
    threshold: float
    forget: tuple[float, ...]
    far: tuple[float, ...]
    near: tuple[float, ...]
    tokens: Tokens = "all"
    altered: tuple[float, ...] = ()
    """Of the forget prompts in wrappers, with altered images."""

    @property
    def pool(self) -> int:
        """The number of token scores whose mean is compared with the threshold."""
        return pool_of(self.tokens)

    @property
    def recall(self) -> float:
        """Share of the validation split's forget prompts that fire."""
        return share_over(self.forget, self.threshold)

    @property
    def reach(self) -> tuple[float, float]:
        """What gates are chosen by: the recall, then that of altered prompts."""
        return self.recall, share_over(self.altered, self.threshold)

    @property
    def summary(self) -> dict[str, Any]:
        """What a report says of a gate that was tried."""
        return {
            "layers": list(self.layers),
            "tokens": self.tokens,
            "recall": self.recall,
            "altered_recall": self.reach[1],
            "far_fired": share_over(self.far, self.threshold),
            "near_fired": share_over(self.near, self.threshold),
        }


@dataclass(frozen=True)
class GateStates:
    """The states of all prompts from which gates are fitted, after `layers`.

    `forget` and `retain` are of the train split, each prompt as it is and in wrappers, with its
    images altered; `forget_rows` are the rows of the sequences of `forget`, `near` and
    `held_out_near` mark the near misses among the sequences.
    """

    layers: tuple[int, ...]
    forget: TokenStates
    forget_rows: tuple[ForgetPrompt, ...]
    retain: TokenStates
    near: Tensor
    known: TokenStates
    """Forget prompts of the validation split."""
    altered: TokenStates
    """The same in wrappers, with altered images."""
    held_out: TokenStates
    """Retain prompts of the validation split."""
    held_out_near: tuple[bool, ...]
    statistics: RetainStatistics | None = None
    """Of more retain prompts than `retain` has, where they have been computed before."""

    @property
    def sees(self) -> bool:
        """Whether a prompt has an image."""
        return self.forget.image is not None or self.retain.image is not None

    def can_score(self, tokens: Tokens) -> bool:
        """Whether prompts to forget and to retain, of the train split, have such tokens."""
        return all(len(part.only(tokens).states) > 0 for part in (self.forget, self.retain))

    def indices(self, layers: Sequence[int]) -> list[int]:
        """The places of `layers` in the states."""
        return [self.layers.index(layer) for layer in layers]

    def only(self, tokens: Tokens) -> GateStates:
        """Those of the tokens that a guard of `tokens` scores."""
        names = ("forget", "retain", "known", "altered", "held_out")
        return replace(self, **{name: getattr(self, name).only(tokens) for name in names})


def read_states(
    chat: ChatModel,
    forget: Sequence[ForgetPrompt],
    retain: Sequence[RetainPrompt],
    rng: random.Random,
    progress: Stages,
) -> GateStates:
    """The states of all prompts after all layers at which gates are tried, each read once."""
    layers = sorted({layer for pair in _pairs(chat, (*forget, *retain)) for layer in pair})
    train, held_out = in_split(retain, "train"), in_split(retain, "validation")
    wrapped_retain = [row for row in _repeated(train) if rng.random() < WRAPPED_RETAIN]

    def states(stage: str, prompts: Sequence[Prompt]) -> TokenStates:
        return collect_states(chat, prompts, layers, stage, progress)

    def plain(rows: Sequence[ForgetPrompt] | Sequence[RetainPrompt]) -> list[Prompt]:
        return [prompt_of(chat, row) for row in rows]

    pictures = [image for row in train for image in row.images]
    unseen = [image for row in held_out for image in row.images]

    def wrapped(
        rows: Sequence[ForgetPrompt] | Sequence[RetainPrompt], others: Sequence[NDArray[np.uint8]]
    ) -> list[Prompt]:
        prompts = []
        for row in rows:
            text = rng.choice(WRAPPERS).format(row.prompt)
            images = [altered(image, others, rng) for image in row.images]
            prompts.append(prompt_of(chat, row.asked(text, row.image, images)))
        return prompts

    positive, known = in_split(forget, "train"), in_split(forget, "validation")
    wrapped_forget = _repeated(positive)
    return GateStates(
        layers=tuple(layers),
        forget=states(
            "reading forget prompts", plain(positive) + wrapped(wrapped_forget, pictures)
        ),
        forget_rows=(*positive, *wrapped_forget),
        retain=states("reading retain prompts", plain(train) + wrapped(wrapped_retain, pictures)),
        near=torch.tensor([row.near for row in (*train, *wrapped_retain)]),
        known=states("validation, forget", plain(known)),
        altered=states("validation, altered", wrapped(known, unseen)),
        held_out=states("validation, retain", plain(held_out)),
        held_out_near=tuple(row.near for row in held_out),
    )


def fit_gate(
    chat: ChatModel, states: GateStates, rates: GateRates, tokens: Tokens | None
) -> tuple[FittedGate, tuple[FittedGate, ...]]:
    """The gate with the highest recall on the validation split, and all that were tried: pairs of
    depths and, where `tokens` is None and prompts have images, tokens to score.

    Raises DataError for tokens that the prompts to forget, or those to retain, do not have.
    """
    if tokens == "image" and not states.can_score("image"):
        raise DataError(NO_IMAGES)
    kinds = (tokens,) if tokens else TOKENS if states.sees else ("all",)
    kinds = tuple(kind for kind in kinds if kind != "image" or states.can_score(kind))
    pairs = pairs_of(chat, states.sees)
    candidates = []
    for kind in kinds:
        chosen = states.only(kind)
        candidates += [_candidate(chosen, pair, kind, rates) for pair in pairs]
    return max(candidates, key=lambda gate: gate.reach), tuple(candidates)


def _candidate(
    states: GateStates, layers: tuple[int, ...], tokens: Tokens, rates: GateRates
) -> FittedGate:
    indices, near = states.indices(layers), states.held_out_near
    gates = RetainStatistics.of(states.retain, states.near, indices).gate(states.forget)
    pool = pool_of(tokens)

    def scored(part: TokenStates) -> tuple[float, ...]:
        return tuple(part.pooled(part.score(indices, gates), pool).tolist())

    scores = scored(states.held_out)
    return FittedGate(
        layers=layers,
        gates=gates,
        threshold=rates.threshold(scores, near),
        forget=scored(states.known),
        far=tuple(s for s, is_near in zip(scores, near, strict=True) if not is_near),
        near=tuple(s for s, is_near in zip(scores, near, strict=True) if is_near),
        tokens=tokens,
        altered=scored(states.altered),
    )


def recheck_threshold(
    gate: FittedGate, states: TokenStates, rows: Sequence[RetainPrompt], rates: GateRates
) -> float:
    """The threshold for prompt and answer together, from the `states` of retain prompts with the
    bare answers (`answered_states`).

    It is never lower than the prompt's threshold, since the joint score is never smaller.
    """
    chosen = states.only(gate.tokens)
    scores = chosen.pooled(chosen.score(range(len(gate.layers)), gate.gates), gate.pool).tolist()
    return max(gate.threshold, rates.threshold(scores, [row.near for row in rows]))


def answered_states(
    chat: ChatModel,
    layers: Sequence[int],
    rows: Sequence[RetainPrompt],
    answers: Sequence[GuardedAnswer],
    progress: Stages,
) -> TokenStates:
    """The states after `layers` of retain prompts with their answers."""
    prompts = [prompt_of(chat, row) for row in rows]
    tokens = [answer.tokens for answer in answers]
    return collect_states(chat, prompts, layers, "reading retain answers", progress, tokens)


def collect_states(
    chat: ChatModel,
    prompts: Sequence[Prompt],
    layers: Sequence[int],
    stage: str,
    progress: Stages,
    answers: Sequence[Sequence[int]] = (),
) -> TokenStates:
    """States of all tokens but each sequence's first, the attention sink, as the runtime does.

    `answers` are token ids behind the prompts.
    """
    sequences = [
        prompt.extended(tokens)
        for prompt, tokens in zip(prompts, answers or [()] * len(prompts), strict=True)
    ]
    shared = shared_prefix(sequences)
    parts: dict[int, Tensor] = {}
    advance = progress(stage, len(sequences))
    for i, states in chat.states(sequences, layers, advance):
        parts[i] = states[1:].half()
    lengths = torch.tensor([len(parts[i]) for i in range(len(sequences))])
    last = [
        torch.arange(1, len(sequence)) >= len(prompt) - 1
        for prompt, sequence in zip(prompts, sequences, strict=True)
    ]
    return TokenStates(
        states=torch.cat([parts[i] for i in range(len(sequences))]),
        sequence=torch.repeat_interleave(torch.arange(len(sequences)), lengths),
        behind_prefix=torch.cat([torch.arange(1, n + 1) >= shared for n in lengths.tolist()]),
        count=len(sequences),
        image=torch.cat([_of_images(sequence)[1:] for sequence in sequences])
        if any(sequence.media for sequence in sequences)
        else None,
        last=torch.cat(last),
    )


def share_over(scores: Sequence[float], threshold: float) -> float:
    """Share of scores over the threshold."""
    return sum(score > threshold for score in scores) / max(len(scores), 1)


def _repeated(rows: Sequence[R]) -> list[R]:
    """`rows`, and those with images ALTERED times in all."""
    pictured = [row for row in rows if row.images]
    return list(rows) + pictured * (ALTERED - 1)


def _pairs(chat: ChatModel, rows: Sequence[ForgetPrompt | RetainPrompt]) -> list[tuple[int, ...]]:
    return pairs_of(chat, any(row.images for row in rows))


def pairs_of(chat: ChatModel, sees: bool = False) -> list[tuple[int, ...]]:
    """The layers at which gates are tried on a model, where prompts have images and elsewhere."""
    depths = IMAGE_DEPTHS if sees else DEPTHS
    pairs = [[max(round(s * chat.depth) - 1, 0) for s in shares] for shares in depths]
    # in a model of few layers both may be the same one
    return list(dict.fromkeys(tuple(dict.fromkeys(pair)) for pair in pairs))


def _of_images(prompt: Prompt) -> Tensor:
    """`[tokens]`, the placeholder tokens of images: a span may hold others between them."""
    tokens = torch.tensor(prompt.tokens)
    mask = torch.zeros(len(tokens), dtype=torch.bool)
    for item in prompt.media:
        span = slice(item.start, item.stop)
        mask[span] = tokens[span] == tokens[item.start]
    return mask
