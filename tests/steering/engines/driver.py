"""Rows that join late and leave early, as in a server, and the expected answers."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from steering.engines.transformers.engine import RowStart, TransformersEngine
from steering.engines.transformers.row_tokens import RowToken
from steering.engines.transformers.sampling import RowSampling
from steering.hidden.rows import Reading, RowGuard
from steering.prompt import Prompt

NO_SAMPLING = RowSampling()


def start(
    prompt: Sequence[int],
    guards: Sequence[RowGuard] = (),
    sampling: RowSampling = NO_SAMPLING,
) -> RowStart:
    return RowStart(Prompt(tuple(prompt)), guards, sampling)


def serve(
    engine: TransformersEngine,
    starts: Sequence[RowStart],
    *,
    joins: Sequence[int] | None = None,
    tokens: int | Sequence[int] = 8,
) -> tuple[list[list[RowToken]], list[dict[str, Reading]]]:
    """Row i joins before decode step `joins[i]` and leaves after its number of `tokens`."""
    joins = [0] * len(starts) if joins is None else joins
    lengths = [tokens] * len(starts) if isinstance(tokens, int) else tokens
    out: list[list[RowToken]] = [[] for _ in starts]
    readings: list[dict[str, Reading]] = [{} for _ in starts]
    live: list[int] = []
    step = 0
    while live or step <= max(joins):
        joining = [i for i, at in enumerate(joins) if at == step]
        if joining:
            live += joining
            for i, token in zip(joining, engine.prefill([starts[i] for i in joining]), strict=True):
                out[i].append(token)
        _leave(engine, live, out, readings, lengths)
        if live:
            for i, token in zip(live, engine.decode(), strict=True):
                out[i].append(token)
            _leave(engine, live, out, readings, lengths)
        step += 1
    return out, readings


def _leave(
    engine: TransformersEngine,
    live: list[int],
    out: list[list[RowToken]],
    readings: list[dict[str, Reading]],
    lengths: Sequence[int],
) -> None:
    ended = [row for row, i in enumerate(live) if len(out[i]) >= lengths[i]]
    for row in ended:
        readings[live[row]] = engine.readings(row)
    for source, target in engine.drop(ended):
        live[target] = live[source]
    del live[engine.rows :]


def ids(rows: list[list[RowToken]]) -> list[list[int]]:
    return [[token.token for token in row] for row in rows]


def generated(model: Any, prompt: Sequence[int], tokens: int) -> list[int]:
    """The answer of transformers' greedy search to this prompt alone."""
    prompt_ids = torch.tensor([list(prompt)])
    answer = model.generate(
        prompt_ids,
        attention_mask=torch.ones_like(prompt_ids),
        max_new_tokens=tokens,
        min_new_tokens=tokens,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    return answer[0, len(prompt) :].tolist()


def weights_hash(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.contiguous().numpy().tobytes())
    return digest.hexdigest()


def hooks_on(model: nn.Module) -> int:
    """Number of hooks from `steering`: transformers installs other ones."""
    return sum(
        hook.__module__.startswith("steering.")
        for module in model.modules()
        for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    )
