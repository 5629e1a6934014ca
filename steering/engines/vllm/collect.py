"""The residual stream behind decoder layers of vLLM, token by token of each sequence.

A forward holds stretches of sequences, one behind the other; a long sequence comes in several, and
one that was put off comes once more. Each stretch goes to its own place.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

SEQUENCE = "guard_sequence"
"""The extra argument of a request that says which sequence it is."""


class Collector:
    """Follows a V1 model runner's forwards; between them it holds what was not yet taken."""

    def __init__(
        self, runner: Any, layers: Sequence[int], sequences: Sequence[Sequence[int]], width: int
    ) -> None:
        self._runner, self._layers = runner, layers
        self._sequences, self._width = sequences, width
        self._states: dict[int, Tensor] = {}
        self._stretches: list[tuple[int, int, int]] = []
        """Of the running forward, in its order: sequence, its first token, number of tokens."""
        self._seen: dict[int, Tensor] = {}

    @contextmanager
    def hooked(self, layers: Sequence[nn.Module]) -> Iterator[None]:
        """Read behind `layers`, the model's own, while it lasts; no later layer is run."""
        decoder = self._runner.model.model
        # how a pipeline's stages share the layers out
        last = getattr(decoder, "end_layer", None)
        handles = [layers[i].register_forward_hook(self._hook(i)) for i in set(self._layers)]
        try:
            if last is not None:
                decoder.end_layer = max(self._layers) + 1
            yield
        finally:
            if last is not None:
                decoder.end_layer = last
            for handle in handles:
                handle.remove()

    def update(self, scheduled: Any) -> None:
        """Nothing is kept of requests."""

    def begin(self, scheduled: Any, lengths: Any) -> None:
        """Which tokens of which sequences the forward holds."""
        batch = self._runner.input_batch
        computed = batch.num_computed_tokens_cpu
        self._stretches = [
            (self._sequence(name), int(computed[row]), int(lengths[row]))
            for row, name in enumerate(batch.req_ids)
        ]

    def end(self) -> None:
        """The forward is over: its tokens go to their places."""
        if self._stretches and self._seen:
            seen = torch.stack([self._seen[layer] for layer in self._layers], dim=1).float().cpu()
            stretches = torch.split(seen, [length for _, _, length in self._stretches])
            for (i, first, length), states in zip(self._stretches, stretches, strict=True):
                self._room(i)[first : first + length] = states
        self._stretches, self._seen = [], {}

    def taken(self, sequence: int) -> Tensor:
        """`[tokens, layers, width]` of a sequence that is done, which is then forgotten."""
        return self._states.pop(sequence)

    def _hook(self, layer: int) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: tuple[Tensor, Tensor]) -> None:
            if self._stretches:
                hidden, residual = output
                tokens = sum(length for _, _, length in self._stretches)
                # what a device pads the forward with is nobody's
                self._seen[layer] = (hidden + residual)[:tokens]

        return hook

    def _room(self, sequence: int) -> Tensor:
        if sequence not in self._states:
            shape = (len(self._sequences[sequence]), len(self._layers), self._width)
            # a token that no forward held would be seen at once
            self._states[sequence] = torch.full(shape, torch.nan)
        return self._states[sequence]

    def _sequence(self, name: str) -> int:
        return int(self._runner.requests[name].sampling_params.extra_args[SEQUENCE])
