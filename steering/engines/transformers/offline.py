"""Many prompts at once without a server, for fits and evals: greedy answers, states, losses."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from steering.engines.transformers.engine import RowStart, TransformersEngine
from steering.engines.transformers.layers import decoder_layers, hidden_of
from steering.hidden.rows import Reading

Advance = Callable[[int], None]


@dataclass(frozen=True)
class Answer:
    """Generated token ids without the end token, and the readings of the row's guards."""

    tokens: tuple[int, ...]
    readings: dict[str, Reading]


def nothing(_count: int) -> None:
    """An `Advance` that does nothing."""


def answers(
    engine: TransformersEngine,
    starts: Sequence[RowStart],
    *,
    max_tokens: int,
    end_tokens: frozenset[int],
    advance: Advance = nothing,
) -> list[Answer]:
    """Answers to all `starts`, in their order; prompts of similar length share a batch.

    `advance` is called with the number of rows that have just finished. Raises ValueError as
    `TransformersEngine.prefill`.
    """
    order = sorted(range(len(starts)), key=lambda i: len(starts[i].prompt))
    done: dict[int, Answer] = {}
    for first in range(0, len(order), engine.capacity):
        live = order[first : first + engine.capacity]
        tokens: dict[int, list[int]] = {i: [] for i in live}
        engine.reset()
        step = engine.prefill([starts[i] for i in live])
        while live:
            ended = []
            for row, (i, token) in enumerate(zip(live, step, strict=True)):
                stop = token.token in end_tokens
                if not stop:
                    tokens[i].append(token.token)
                if stop or len(tokens[i]) >= max_tokens:
                    done[i] = Answer(tuple(tokens[i]), engine.readings(row))
                    ended.append(row)
            for source, target in engine.drop(ended):
                live[target] = live[source]
            del live[engine.rows :]
            advance(len(ended))
            if live:
                step = engine.decode()
    return [done[i] for i in range(len(starts))]


class _StopForward(Exception):
    """Raised by a hook to skip the layers behind the last one that is needed."""


@torch.inference_mode()
def token_states(
    model: Any,
    sequences: Sequence[Sequence[int]],
    layers: Sequence[int],
    *,
    batch: int = 16,
    advance: Advance = nothing,
) -> Iterator[tuple[int, Tensor]]:
    """For each sequence of token ids, in any order, its index and the residual stream after the
    given decoder layers, `[tokens, len(layers), width]`, float32 on the CPU.

    Sequences of similar length share a batch, and the forward ends at the last of `layers`.
    """
    modules = decoder_layers(model)
    states: dict[int, Tensor] = {}

    def record(layer: int) -> Callable[..., None]:
        def hook(_module: Any, _inputs: Any, output: Any) -> None:
            states[layer] = hidden_of(output)
            if layer == max(layers):
                raise _StopForward

        return hook

    handles = [modules[layer].register_forward_hook(record(layer)) for layer in layers]
    device = next(model.parameters()).device
    try:
        order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
        for first in range(0, len(order), batch):
            chosen = order[first : first + batch]
            longest = len(sequences[chosen[-1]])
            # right padding: under causal attention no token before it attends to it
            ids = [list(sequences[i]) + [0] * (longest - len(sequences[i])) for i in chosen]
            with suppress(_StopForward):
                model(input_ids=torch.tensor(ids, device=device), use_cache=False)
            stacked = torch.stack([states[layer] for layer in layers], dim=2).float().cpu()
            for row, i in enumerate(chosen):
                yield i, stacked[row, : len(sequences[i])]
            advance(len(chosen))
    finally:
        for handle in handles:
            handle.remove()


@torch.inference_mode()
def token_losses(
    model: Any, sequences: Sequence[Sequence[int]], *, batch: int = 16
) -> Iterator[tuple[int, Tensor]]:
    """For each sequence of token ids, in any order, its index and `[tokens - 1]`, float32 on the
    CPU: -log p of every token but the first. Sequences of similar length share a batch."""
    device = next(model.parameters()).device
    order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
    for first in range(0, len(order), batch):
        chosen = order[first : first + batch]
        ids = torch.zeros(len(chosen), len(sequences[chosen[-1]]), dtype=torch.long)
        for row, i in enumerate(chosen):
            ids[row, : len(sequences[i])] = torch.tensor(sequences[i])
        ids = ids.to(device)
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
        loss = torch.nn.functional.cross_entropy(
            logits.transpose(1, 2), ids[:, 1:], reduction="none"
        ).cpu()
        for row, i in enumerate(chosen):
            yield i, loss[row, : len(sequences[i]) - 1]
