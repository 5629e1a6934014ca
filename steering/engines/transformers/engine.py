"""Continuous batching for a transformers language model, with guards on each row.

The engine handles rows and tokens alone: the service above it queues requests, ends them and sends
text to clients. Rows are dense (`0..n-1`); `drop` fills each hole with the last row.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from steering.engines.transformers.cache import SlotCache
from steering.engines.transformers.layers import decoder_layers
from steering.engines.transformers.sampling import RowSampling, sample, uniform
from steering.hidden.bank import HiddenBank
from steering.hidden.rows import Reading, RowGuard
from steering.hidden.seam import HiddenSeam
from steering.hidden.table import Table, without_sink
from steering.prompt import Prompt


@dataclass(frozen=True)
class RowStart:
    """A row to be added: its prompt (text, not empty), the guards it carries, its sampling."""

    prompt: Prompt
    guards: Sequence[RowGuard]
    sampling: RowSampling


@dataclass(frozen=True)
class RowToken:
    """One generated token. `logprob` and `top` are filled where the row asked for them.

    `fired` and `invalid` are over all guards of the row, up to and including this forward: has one
    fired, has one met NaN.
    """

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    fired: bool = False
    invalid: bool = False


class TransformersEngine:
    """Runs one causal language model with up to `capacity` rows. Not thread-safe.

    Raises UnknownArchitecture where the decoder layers cannot be found.
    """

    def __init__(self, model: Any, bank: HiddenBank, *, capacity: int) -> None:
        self._model = model.eval()
        self._device = next(model.parameters()).device
        self._dtype = next(model.parameters()).dtype
        self.capacity = capacity
        config = model.config
        layer_types = set(getattr(config, "layer_types", None) or ())
        self._sliding = config.sliding_window if "sliding_attention" in layer_types else None
        self._window = None if layer_types else getattr(config, "sliding_window", None)
        self._layers = config.num_hidden_layers
        self._seam = HiddenSeam(list(decoder_layers(model)))
        self.rows = 0
        self.use(bank)

    def use(self, bank: HiddenBank) -> None:
        """Run with the guards of `bank` from now on. Drops all live rows."""
        self._bank = bank
        self._seam.install(bank.layers)
        self.reset()

    def reset(self) -> None:
        """Drop all rows and clear the cache."""
        self.rows = 0
        self._table = Table(self._bank, self.capacity)
        self._cache = SlotCache(self._layers, self.capacity)
        integers = {"dtype": torch.long, "device": self._device}
        self._length = torch.zeros(self.capacity, **integers)
        self._last = torch.zeros(self.capacity, **integers)
        self._seed = torch.zeros(self.capacity, **integers)
        self._step = torch.zeros(self.capacity, **integers)
        self._temperature = torch.zeros(self.capacity, device=self._device)
        self._top_p = torch.ones(self.capacity, device=self._device)
        self._top_logprobs: list[int | None] = [None] * self.capacity

    def close(self) -> None:
        """Remove the hooks from the model."""
        self._seam.remove()

    def readings(self, row: int) -> dict[str, Reading]:
        """The readings of the row's guards so far, by the guard's name."""
        return self._table.readings(row)

    @torch.inference_mode()
    def prefill(self, starts: Sequence[RowStart]) -> list[RowToken]:
        """Add rows behind the live ones and generate the first token of each.

        Raises ValueError where they do not fit, and for a prompt that is empty or holds more than
        text: no row has changed then.
        """
        first, count = self.rows, len(starts)
        if first + count > self.capacity:
            raise ValueError(f"{first + count} rows do not fit a capacity of {self.capacity}")
        if not all(len(start.prompt) for start in starts):
            raise ValueError("a prompt has no tokens: there is nothing to continue")
        for start in starts:
            start.prompt.require_text()
        lengths = torch.tensor([len(start.prompt) for start in starts], device=self._device)
        width = int(lengths.max())
        # left padding: the last token of every row stands in the last column
        ids = [[0] * (width - len(start.prompt)) + list(start.prompt.tokens) for start in starts]
        column = torch.arange(width, device=self._device)
        positions = column[None] - (width - lengths)[:, None]
        real = positions >= 0
        for offset, start in enumerate(starts):
            self._add_row(first + offset, start)
        rows = slice(first, first + count)
        self._length[rows] = lengths
        self._table.begin(rows, without_sink(real))
        self._cache.prefill(torch.arange(first, first + count, device=self._device), positions)
        visible = (column[:, None] >= column[None])[None] & real[:, None, :]
        visible = visible | torch.eye(width, dtype=torch.bool, device=self._device)[None]
        token_ids = torch.tensor(ids, device=self._device)
        logits = self._forward(token_ids, positions.clamp(min=0), visible, positions)
        self.rows += count
        return self._next(rows, logits)

    @torch.inference_mode()
    def decode(self) -> list[RowToken]:
        """Generate the next token of every live row."""
        rows = slice(0, self.rows)
        position = self._length[rows]
        tokens = int(position.max()) + 1
        self._table.begin(rows, None)
        self._cache.decode(position, tokens)
        column = torch.arange(tokens, device=self._device).expand(self.rows, tokens)
        visible = (column <= position[:, None])[:, None]
        logits = self._forward(self._last[rows, None], position[:, None], visible, column)
        self._length[rows] += 1
        return self._next(rows, logits)

    @torch.inference_mode()
    def drop(self, rows: Sequence[int]) -> list[tuple[int, int]]:
        """Remove rows; returns the moves (source, target) that fill the holes, in order."""
        moves = []
        for row in sorted(set(rows), reverse=True):
            last = self.rows - 1
            if row != last:
                self._move(last, row)
                moves.append((last, row))
            self._table.remove(last)
            self.rows = last
        return moves

    def _add_row(self, row: int, start: RowStart) -> None:
        self._table.add(row, start.guards)
        sampling = start.sampling
        self._temperature[row] = sampling.temperature
        self._top_p[row] = sampling.top_p
        self._seed[row] = sampling.seed
        self._step[row] = 0
        self._top_logprobs[row] = sampling.top_logprobs

    def _move(self, source: int, target: int) -> None:
        self._table.move(source, target)
        self._cache.move(source, target)
        for state in (
            *(self._length, self._last, self._seed, self._step),
            *(self._temperature, self._top_p),
        ):
            state[target] = state[source]
        self._top_logprobs[target] = self._top_logprobs[source]

    def _forward(self, ids: Tensor, positions: Tensor, visible: Tensor, keys: Tensor) -> Tensor:
        """Logits `[rows, vocabulary]` of the last column.

        `visible [rows, queries, keys]` is the causal mask, `keys [rows, keys]` the position of
        each key, for windows.
        """
        busy = self._table.senses or self._table.acts
        reading: AbstractContextManager[None] = (
            self._seam.consulting(self._table) if busy else nullcontext()
        )
        with reading:
            output = self._model(
                input_ids=ids,
                attention_mask=self._masks(visible, positions, keys),
                position_ids=positions,
                past_key_values=self._cache,
                use_cache=True,
                logits_to_keep=1,
            )
        return output.logits[:, -1].float()  # type: ignore[no-any-return]

    def _masks(self, visible: Tensor, positions: Tensor, keys: Tensor) -> Any:
        full = self._additive(visible)
        window = self._sliding or self._window
        if window is None:
            return full
        near = positions[:, :, None] - keys[:, None, :] < window
        sliding = self._additive(visible & near)
        if self._sliding is None:
            return sliding
        return {"full_attention": full, "sliding_attention": sliding}

    def _additive(self, visible: Tensor) -> Tensor:
        blocked = torch.finfo(self._dtype).min
        mask = torch.zeros(visible.shape, dtype=self._dtype, device=self._device)
        return mask.masked_fill_(~visible, blocked)[:, None]

    def _next(self, rows: slice, logits: Tensor) -> list[RowToken]:
        uniforms = uniform(self._seed[rows], self._step[rows])
        token = sample(logits, self._temperature[rows], self._top_p[rows], uniforms)
        self._last[rows] = token
        self._step[rows] += 1
        self._table.check(rows, logits)
        fired, invalid = self._table.flags(rows)
        tokens = token.tolist()
        counts = self._top_logprobs[rows]
        if all(count is None for count in counts):
            flagged = zip(tokens, fired, invalid, strict=True)
            return [RowToken(t, fired=f, invalid=i) for t, f, i in flagged]
        logprobs = logits.log_softmax(-1)
        chosen = logprobs.gather(-1, token[:, None])[:, 0].tolist()
        most = max(max(count for count in counts if count is not None), 1)
        values, ids = (part.tolist() for part in logprobs.topk(most, dim=-1))
        result = []
        for row, count in enumerate(counts):
            top = tuple(zip(ids[row], values[row], strict=True))[: count or 0]
            logprob = None if count is None else chosen[row]
            result.append(RowToken(tokens[row], logprob, top, fired[row], invalid[row]))
        return result
