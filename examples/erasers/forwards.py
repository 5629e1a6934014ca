"""The forwards that losses are made of."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from examples.erasers.data import Batch
from examples.erasers.differences import Differences


class Forwards:
    """A model with differences, and the same model without them."""

    def __init__(self, model: Any, differences: Differences) -> None:
        self._model, self._differences = model, differences

    def log_probabilities(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Of all tokens, at each token of an answer, `[tokens, vocabulary]`, and of those that
        stand there, `[tokens]`."""
        states = self._model.model(input_ids=batch.ids, use_cache=False).last_hidden_state
        # the state before a token predicts it
        chosen = states[:, :-1][batch.answer[:, 1:]]
        every = self._model.lm_head(chosen).log_softmax(-1)
        target = batch.ids[:, 1:][batch.answer[:, 1:]]
        return every, every.gather(-1, target[:, None])[:, 0]

    def bare_log_probabilities(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The same of the model without differences."""
        with torch.no_grad(), self._differences.off():
            return self.log_probabilities(batch)

    def states(self, batch: Batch, layer: int) -> Tensor:
        """`[tokens, width]`, after a decoder layer, of all tokens but each row's first, the
        attention sink."""
        caught: list[Tensor] = []

        def stop(_module: Any, _inputs: Any, output: Any) -> None:
            caught.append(output[0] if isinstance(output, tuple) else output)
            raise _Enough

        handle = self._model.model.layers[layer].register_forward_hook(stop)
        try:
            self._model.model(input_ids=batch.ids, use_cache=False)
        except _Enough:
            pass
        finally:
            handle.remove()
        states: Tensor = caught[0][:, 1:][batch.real[:, 1:]]
        return states

    def bare_states(self, batch: Batch, layer: int) -> Tensor:
        """The same of the model without differences."""
        with torch.no_grad(), self._differences.off():
            return self.states(batch, layer)


class _Enough(Exception):
    """No later layer is needed."""


def by_row(values: Tensor, batch: Batch) -> Tensor:
    """Sums `[rows]` of values of all tokens of answers, `[tokens]`."""
    row = batch.answer[:, 1:].nonzero()[:, 0]
    return values.new_zeros(len(batch.ids)).index_add(0, row, values)


def divergence(model: Forwards, batch: Batch) -> Tensor:
    """KL divergence of the model's answers' tokens from the bare model's, in nats a token."""
    bare, _ = model.bare_log_probabilities(batch)
    ours, _ = model.log_probabilities(batch)
    return distance(bare, ours)


def distance(bare: Tensor, ours: Tensor) -> Tensor:
    """KL divergence of `ours` from `bare`, log-probabilities `[tokens, vocabulary]`, in nats a
    token."""
    return torch.nn.functional.kl_div(ours, bare, log_target=True, reduction="batchmean")
