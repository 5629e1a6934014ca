"""Many prompts at once without a server, for fitting and evals: greedy answers, token states."""

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
    """Generated token ids, end token left out, and what the row's guards read."""

    tokens: tuple[int, ...]
    readings: dict[str, Reading]


def nothing(_count: int) -> None:
    """Advance, where nobody looks."""


def answers(
    engine: TransformersEngine,
    starts: Sequence[RowStart],
    *,
    max_tokens: int,
    end_tokens: frozenset[int],
    advance: Advance = nothing,
) -> list[Answer]:
    """Generate for all `starts`, in batches of the engine's capacity, similar lengths together.

    `advance` is called with the number of rows that have just finished.
    """
    order = sorted(range(len(starts)), key=lambda i: len(starts[i].prompt))
    done: dict[int, Answer] = {}
    for at in range(0, len(order), engine.capacity):
        live = order[at : at + engine.capacity]
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


class _Enough(Exception):
    """Raised by a hook to leave a forward whose later layers nobody reads."""


@torch.inference_mode()
def token_states(
    model: Any,
    sequences: Sequence[Sequence[int]],
    layers: Sequence[int],
    *,
    batch: int = 16,
    advance: Advance = nothing,
) -> Iterator[tuple[int, Tensor]]:
    """For each sequence its index and `[tokens, len(layers), width]`, float32 on the CPU.

    The states are those after the given decoder layers; sequences come similar lengths together,
    and the forward ends at the last layer asked for.
    """
    found = decoder_layers(model)
    states: dict[int, Tensor] = {}

    def keep(layer: int) -> Callable[..., None]:
        def hook(_module: Any, _inputs: Any, output: Any) -> None:
            states[layer] = hidden_of(output)
            if layer == max(layers):
                raise _Enough

        return hook

    handles = [found[layer].register_forward_hook(keep(layer)) for layer in layers]
    device = next(model.parameters()).device
    try:
        order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
        for at in range(0, len(order), batch):
            chosen = order[at : at + batch]
            longest = len(sequences[chosen[-1]])
            # right padding: under causal attention nothing real sees it
            ids = [list(sequences[i]) + [0] * (longest - len(sequences[i])) for i in chosen]
            with suppress(_Enough):
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
    """For each sequence its index and `[tokens - 1]`, on the CPU: -log p of every token but the
    first. Sequences come similar lengths together."""
    device = next(model.parameters()).device
    order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
    for at in range(0, len(order), batch):
        chosen = order[at : at + batch]
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
