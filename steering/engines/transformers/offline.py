"""Many prompts at once without a server, for fits and evals: greedy answers, states, losses."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from steering.engines.transformers.engine import RowStart, TransformersEngine
from steering.engines.transformers.forwards import LanguageForward, prompt_positions
from steering.engines.transformers.layers import decoder_layers, hidden_of
from steering.engines.transformers.rewinding import (
    AnswerPolicy,
    HeldAnswer,
    Sentences,
    step_of,
)
from steering.engines.transformers.row_tokens import RowToken
from steering.engines.transformers.shared_prefix import PrefixCache, prefix_of
from steering.engines.transformers.vision.base import VisionFamily
from steering.engines.transformers.vision.images import ForwardImages, ImageEncoder
from steering.hidden.rows import Reading
from steering.prompt import Prompt

Advance = Callable[[int], None]

Tokens = Prompt | Sequence[int]
"""Token ids, of a prompt with images where the model takes them."""


@dataclass(frozen=True)
class Answer:
    """Generated token ids without the end token, and the readings of the row's guards; `scores` are
    those of the first token (`RowToken.scores`), `message` what the policy says behind the tokens.
    """

    tokens: tuple[int, ...]
    readings: dict[str, Reading]
    scores: tuple[float, ...] = ()
    message: str = ""


def nothing(_count: int) -> None:
    """An `Advance` that does nothing."""


def answers(
    engine: TransformersEngine,
    starts: Sequence[RowStart],
    *,
    max_tokens: int,
    end_tokens: frozenset[int],
    advance: Advance = nothing,
    policy: AnswerPolicy | None = None,
    sentences: Sentences | None = None,
    streamed: bool = False,
) -> list[Answer]:
    """Answers to all `starts`, in their order; prompts of similar length share a batch.

    `advance` is called with the number of rows that have just finished. Under a `policy`, which
    needs `sentences`, answers go back or end as it says, `streamed` ones as those that a client
    reads as they come. Raises ValueError as `TransformersEngine.prefill`.
    """
    order = sorted(range(len(starts)), key=lambda i: len(starts[i].prompt))
    done: dict[int, Answer] = {}
    for first in range(0, len(order), engine.capacity):
        live = order[first : first + engine.capacity]
        rows = {i: _Row(starts[i].prompt, policy, sentences, streamed=streamed) for i in live}
        engine.reset()
        step = engine.prefill([starts[i] for i in live])
        scores = {i: token.scores for i, token in zip(live, step, strict=True)}
        while live:
            ended = []
            for row, (i, token) in enumerate(zip(live, step, strict=True)):
                if rows[i].take(engine, row, token, end_tokens, max_tokens):
                    done[i] = rows[i].answer(engine.readings(row), scores[i])
                    ended.append(row)
            for source, target in engine.drop(ended):
                live[target] = live[source]
            del live[engine.rows :]
            advance(len(ended))
            if live:
                step = engine.decode()
    return [done[i] for i in range(len(starts))]


class _Row:
    """The answer of one row while it is generated."""

    def __init__(
        self,
        prompt: Prompt,
        policy: AnswerPolicy | None,
        sentences: Sentences | None,
        *,
        streamed: bool,
    ) -> None:
        self.tokens: list[int] = []
        self._policy, self._message, self._stuck = policy, "", False
        self._held: HeldAnswer | None = None
        if policy is not None and sentences is not None:
            self._held = HeldAnswer.under(policy, sentences, prompt, streamed=streamed)

    def take(
        self,
        engine: TransformersEngine,
        row: int,
        token: RowToken,
        ends: frozenset[int],
        most: int,
    ) -> bool:
        """Add a token of the row `row`; returns whether the answer ends: at one of `ends`, or with
        `most` tokens."""
        policy, held = self._policy, self._held
        step = "push" if policy is None else step_of(policy, token, partial(engine.readings, row))
        if step == "block":
            del self.tokens[-1:]  # the token on which the guard has fired
            return True
        if step == "push":
            # the last token of an answer that may go back is read too
            if token.token in ends or len(self.tokens) == most:
                return True
            self.tokens.append(token.token)
            if held is None:
                return len(self.tokens) == most
            held.push(token)
            del self.tokens[len(held) :]
            return held.repeats
        if held is not None and self.tokens:
            back = held.go_back(token)
            del self.tokens[len(held) :]
            if step == "back":
                engine.rewind(row, back.withdrawn, back.last)
                self._stuck = back.stuck
        if step == "say" or self._stuck:
            joint = held.joint if held is not None else ""
            self._message = joint + policy.message if policy is not None else ""
        return bool(self._message)

    def answer(self, readings: dict[str, Reading], scores: tuple[float, ...]) -> Answer:
        if self._stuck:
            readings = {n: replace(r, stuck=r.rewinds > 0) for n, r in readings.items()}
        return Answer(tuple(self.tokens), readings, scores, self._message)


class _StopForward(Exception):
    """Raised by a hook to skip the layers behind the last one that is needed."""


@torch.inference_mode()
def token_states(
    model: Any,
    sequences: Sequence[Tokens],
    layers: Sequence[int],
    *,
    vision: VisionFamily | None = None,
    batch: int = 16,
    advance: Advance = nothing,
) -> Iterator[tuple[int, Tensor]]:
    """For each sequence, in any order, its index and the residual stream after the given decoder
    layers, `[tokens, len(layers), width]`, float32 on the CPU.

    Sequences of similar length share a batch, and the forward ends at the last of `layers`. Tokens
    that all sequences of text begin with are read once.
    `vision` is the family of a vision-language model. Raises ValueError for images that the model
    does not take.
    """
    modules = decoder_layers(model)
    states: dict[int, Tensor] = {}

    def record(layer: int) -> Callable[..., None]:
        def hook(_module: Any, _inputs: Any, output: Any) -> None:
            states[layer] = hidden_of(output)
            if layer == max(layers):
                raise _StopForward

        return hook

    forward = _WholeSequences(model, vision)
    prompts = [_prompt(each) for each in sequences]
    prefix = () if vision else prefix_of(model, prompts)
    handles = [modules[layer].register_forward_hook(record(layer)) for layer in layers]

    def read(some: Sequence[Prompt], cache: DynamicCache | None = None) -> Tensor:
        with suppress(_StopForward):
            forward(some, cache)
        return torch.stack([states[layer] for layer in layers], dim=2).float().cpu()

    try:
        beginning = torch.zeros(1, 0, len(layers), 0)
        if prefix:
            kept = PrefixCache()
            beginning = read([Prompt(prefix)], kept.cache)
        for chosen in by_length(prompts, batch):
            rest = (
                [Prompt(prompts[i].tokens[len(prefix) :]) for i in chosen]
                if prefix
                else [prompts[i] for i in chosen]
            )
            stacked = read(rest, kept.for_rows(len(rest)) if prefix else None)
            for row, i in enumerate(chosen):
                own = stacked[row, : len(rest[row])]
                yield i, torch.cat([beginning[0], own]) if prefix else own
            advance(len(chosen))
    finally:
        for handle in handles:
            handle.remove()


@torch.inference_mode()
def token_losses(
    model: Any, sequences: Sequence[Tokens], *, vision: VisionFamily | None = None, batch: int = 16
) -> Iterator[tuple[int, Tensor]]:
    """For each sequence, in any order, its index and `[tokens - 1]`, float32 on the CPU: -log p of
    every token but the first. As `token_states` for the rest."""
    forward = _WholeSequences(model, vision)
    prompts = [_prompt(each) for each in sequences]
    for chosen in by_length(prompts, batch):
        ids, logits = forward([prompts[i] for i in chosen])
        loss = torch.nn.functional.cross_entropy(
            logits[:, :-1].float().transpose(1, 2), ids[:, 1:], reduction="none"
        ).cpu()
        for row, i in enumerate(chosen):
            yield i, loss[row, : len(prompts[i]) - 1]


class _WholeSequences:
    """Forwards over whole sequences, padded on the right: under causal attention no token before
    the padding attends to it."""

    def __init__(self, model: Any, vision: VisionFamily | None) -> None:
        self._model = model
        self._forward = LanguageForward(model, vision)
        self._images = None if vision is None else ImageEncoder(model, vision)
        self._axes = 1 if vision is None else vision.axes

    def __call__(
        self, prompts: Sequence[Prompt], cache: DynamicCache | None = None
    ) -> tuple[Tensor, Tensor]:
        """The token ids `[rows, tokens]` and the logits `[rows, tokens, vocabulary]`; `cache` has
        the keys of the tokens before those of `prompts`, of text alone, and takes theirs."""
        device = self._forward.device
        longest = max(map(len, prompts))
        ids = torch.zeros(len(prompts), longest, dtype=torch.long)
        for row, prompt in enumerate(prompts):
            ids[row, : len(prompt)] = torch.tensor(prompt.tokens)
        ids = ids.to(device)
        if self._images is None:
            for prompt in prompts:
                prompt.require_text()
            kept = {"use_cache": False} if cache is None else {"past_key_values": cache}
            return ids, self._model(input_ids=ids, **kept).logits
        for prompt in prompts:
            self._images.check(prompt)
        images = ForwardImages.of(
            self._images.encode(prompts), longest, offsets=[0] * len(prompts), device=device
        )
        column = torch.arange(longest, device=device)
        index = column.expand(len(prompts), longest)
        visible = (column <= column[:, None]).expand(len(prompts), longest, longest)
        positions = prompt_positions(prompts, index, self._axes)
        return ids, self._forward.logits(
            ids, positions, visible, index, index, images=images, last=0
        )


def _prompt(sequence: Tokens) -> Prompt:
    return sequence if isinstance(sequence, Prompt) else Prompt(tuple(sequence))


def by_length(prompts: Sequence[Prompt], batch: int) -> Iterator[list[int]]:
    """The indices of the prompts, in batches of similar length."""
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for first in range(0, len(order), batch):
        yield order[first : first + batch]
