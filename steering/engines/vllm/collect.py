"""The residual stream after decoder layers of vLLM, collected for each token of each sequence.

A forward holds spans of several sequences, one behind the other. A long sequence comes in several
spans, and a preempted one comes again. Each span is copied to its place in the sequence's states.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from steering.engines.vllm.layers import decoder, has_pending_residual, stream_of

SEQUENCE = "guard_sequence"
"""The extra argument of a request with the index of its sequence."""


class Collector:
    """Observes the forwards of a V1 model runner and keeps the states until they are popped."""

    def __init__(
        self, runner: Any, layers: Sequence[int], sequences: Sequence[Sequence[int]], width: int
    ) -> None:
        self._runner, self._layers = runner, layers
        self._sequences, self._width = sequences, width
        self._states: dict[int, Tensor] = {}
        self._spans: list[tuple[int, int, int]] = []
        """Spans of the running forward, in order: sequence, first token, number of tokens."""
        self._outputs: dict[int, Tensor] = {}
        """States `[tokens, width]` of the running forward, by layer."""

    @contextmanager
    def hooks(self, layers: Sequence[nn.Module]) -> Iterator[None]:
        """A context with hooks on the model's decoder `layers`; layers behind the last one that is
        needed are skipped."""
        inner = decoder(self._runner.model)
        # the end of the layers that this pipeline stage runs
        last = getattr(inner, "end_layer", None)
        handles = [
            layers[i].register_forward_hook(self._hook(i, has_pending_residual(layers[i])))
            for i in set(self._layers)
        ]
        try:
            if last is not None:
                inner.end_layer = max(self._layers) + 1
            yield
        finally:
            if last is not None:
                inner.end_layer = last
            for handle in handles:
                handle.remove()

    def update(self, scheduled: Any) -> None:
        """Does nothing: the collector keeps no state of requests."""

    def begin(self, scheduled: Any, lengths: Any) -> None:
        """Note the tokens and sequences of the forward that starts."""
        batch = self._runner.input_batch
        computed = batch.num_computed_tokens_cpu
        self._spans = [
            (self._sequence(name), int(computed[row]), int(lengths[row]))
            for row, name in enumerate(batch.req_ids)
        ]

    def end(self) -> None:
        """Copy the states of the finished forward to their sequences."""
        if self._spans and self._outputs:
            outputs = [self._outputs[layer] for layer in self._layers]
            stacked = torch.stack(outputs, dim=1).float().cpu()
            by_span = torch.split(stacked, [length for _, _, length in self._spans])
            for (i, first, length), states in zip(self._spans, by_span, strict=True):
                self._states_of(i)[first : first + length] = states
        self._spans, self._outputs = [], {}

    def pop(self, sequence: int) -> Tensor:
        """Remove and return the states `[tokens, layers, width]` of a finished sequence."""
        return self._states.pop(sequence)

    def _hook(self, layer: int, adds_later: bool) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if self._spans:
                hidden, residual = stream_of(output, adds_later)
                tokens = sum(length for _, _, length in self._spans)
                # without the tokens that pad the forward
                states = hidden if residual is None else hidden + residual
                self._outputs[layer] = states[:tokens]

        return hook

    def _states_of(self, sequence: int) -> Tensor:
        if sequence not in self._states:
            shape = (len(self._sequences[sequence]), len(self._layers), self._width)
            # NaN: a token that no forward has computed would show
            self._states[sequence] = torch.full(shape, torch.nan)
        return self._states[sequence]

    def _sequence(self, name: str) -> int:
        return int(self._runner.requests[name].sampling_params.extra_args[SEQUENCE])
