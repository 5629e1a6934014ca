"""Continuous batching for a transformers language model, with guards on each row.

The engine handles rows and tokens alone: the service above it queues requests, ends them and sends
text to clients. Rows are dense (`0..n-1`); `drop` fills each hole with the last row.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers.cache_utils import Cache

from steering.engines.transformers.cache import PromptCache
from steering.engines.transformers.lanes import Lane, Lanes
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


@dataclass(frozen=True)
class PromptReading:
    """A prompt that is read in parts: its tokens, and the keys and values of those read so far."""

    tokens: Sequence[int]
    cache: PromptCache


class TransformersEngine:
    """Runs one causal language model with up to `capacity` rows. Not thread-safe.

    Short prompts are added with `prefill`, each group in one forward. A long one is added with
    `begin` and read in parts with `read`, while the rows go on with `decode` in between; it becomes
    a row at its end.

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
        self._lanes = Lanes(self._layers)
        self._lengths: list[int] = []
        self._reading: PromptReading | None = None
        # the state of a prompt that is being read stands behind that of the rows
        states = self.capacity + 1
        self._table = Table(self._bank, states)
        integers = {"dtype": torch.long, "device": self._device}
        self._length = torch.zeros(states, **integers)
        self._last = torch.zeros(states, **integers)
        self._seed = torch.zeros(states, **integers)
        self._step = torch.zeros(states, **integers)
        self._temperature = torch.zeros(states, device=self._device)
        self._top_p = torch.ones(states, device=self._device)
        self._top_logprobs: list[int | None] = [None] * states

    def close(self) -> None:
        """Remove the hooks from the model."""
        self._seam.remove()

    def readings(self, row: int) -> dict[str, Reading]:
        """The readings of the row's guards so far, by the guard's name."""
        return self._table.readings(row)

    @torch.inference_mode()
    def prefill(self, starts: Sequence[RowStart]) -> list[RowToken]:
        """Add rows behind the live ones and generate the first token of each, in one forward.

        Raises ValueError where they do not fit, and for a prompt that is empty or holds more than
        text: no row has changed then.
        """
        self._check(starts)
        first, count = self.rows, len(starts)
        lengths = torch.tensor([len(start.prompt) for start in starts], device=self._device)
        width = int(lengths.max())
        # left padding: the last token of every row stands in the last column
        ids = [[0] * (width - len(start.prompt)) + list(start.prompt.tokens) for start in starts]
        column = torch.arange(width, device=self._device)
        positions = column[None] - (width - lengths)[:, None]
        real = positions >= 0
        for offset, start in enumerate(starts):
            self._add_row(first + offset, start)
        self._table.begin(slice(first, first + count), without_sink(real))
        visible = (column[:, None] >= column[None])[None] & real[:, None, :]
        visible = visible | torch.eye(width, dtype=torch.bool, device=self._device)[None]
        cache = PromptCache(self._layers, width)
        token_ids = torch.tensor(ids, device=self._device)
        logits = self._forward(token_ids, positions.clamp(min=0), visible, positions, cache)
        return self._next(self._place([len(start.prompt) for start in starts], cache), logits)

    @torch.inference_mode()
    def begin(self, start: RowStart) -> None:
        """Begin to read one long prompt, which `read` goes on with.

        Raises ValueError as `prefill`, and while another prompt is being read.
        """
        if self._reading is not None:
            raise ValueError("another prompt is being read")
        self._check([start])
        self._add_row(self.capacity, start)
        cache = PromptCache(self._layers, len(start.prompt))
        self._reading = PromptReading(start.prompt.tokens, cache)

    @torch.inference_mode()
    def read(self, most: int) -> RowToken | None:
        """Read at most `most` (one at least) further tokens of the prompt that was begun.

        At its end the prompt becomes the last row; returns the first token that it generates, None
        before. Raises ValueError where no prompt is being read.
        """
        if self._reading is None:
            raise ValueError("no prompt is being read")
        tokens, cache = self._reading.tokens, self._reading.cache
        first, last = cache.past, min(cache.past + most, len(tokens))
        keys = torch.arange(last, device=self._device)[None]
        positions = keys[:, first:]
        sensed = torch.ones(1, last - first, dtype=torch.bool, device=self._device)
        # as `without_sink`, for a prompt of which this may be a part
        sensed[0, 0] = first > 0 or len(tokens) == 1
        ends = last == len(tokens)
        self._table.begin(np.array([self.capacity]), sensed, ends=ends)
        visible = keys[:, None, :] <= positions[:, :, None]
        ids = torch.tensor([tokens[first:last]], device=self._device)
        logits = self._forward(ids, positions, visible, keys, cache)
        cache.past = last
        if not ends:
            return None
        self._move(self.capacity, self.rows)
        self._reading = None
        return self._next(self._place([last], cache), logits)[0]

    def abandon(self) -> None:
        """Forget the prompt that is being read, if there is one."""
        if self._reading is not None:
            self._table.remove(self.capacity)
            self._reading = None

    @torch.inference_mode()
    def decode(self) -> list[RowToken]:
        """Generate the next token of every live row; rows of similar length share a forward."""
        self._lanes.outgrow(self._lengths)
        tokens: dict[int, RowToken] = {}
        for lane in self._lanes:
            tokens |= zip(lane.rows, self._decode(lane), strict=True)
        return [tokens[row] for row in range(self.rows)]

    @torch.inference_mode()
    def drop(self, rows: Sequence[int]) -> list[tuple[int, int]]:
        """Remove rows; returns the moves (source, target) that fill the holes, in order."""
        moves = []
        for row in sorted(set(rows), reverse=True):
            last = self.rows - 1
            self._lanes.replace(row)
            if row != last:
                self._move(last, row)
                self._lengths[row] = self._lengths[last]
                moves.append((last, row))
            self._table.remove(last)
            self._lengths.pop()
            self.rows = last
        return moves

    def _check(self, starts: Sequence[RowStart]) -> None:
        rows = self.rows + len(starts) + (self._reading is not None)
        if rows > self.capacity:
            raise ValueError(f"{rows} rows do not fit a capacity of {self.capacity}")
        if not all(len(start.prompt) for start in starts):
            raise ValueError("a prompt has no tokens: there is nothing to continue")
        for start in starts:
            start.prompt.require_text()

    def _add_row(self, row: int, start: RowStart) -> None:
        self._table.add(row, start.guards)
        sampling = start.sampling
        self._length[row] = len(start.prompt)
        self._temperature[row] = sampling.temperature
        self._top_p[row] = sampling.top_p
        self._seed[row] = sampling.seed
        self._step[row] = 0
        self._top_logprobs[row] = sampling.top_logprobs

    def _move(self, source: int, target: int) -> None:
        self._table.move(source, target)
        for state in (
            *(self._length, self._last, self._seed, self._step),
            *(self._temperature, self._top_p),
        ):
            state[target] = state[source]
        self._top_logprobs[target] = self._top_logprobs[source]

    def _place(self, lengths: Sequence[int], prompts: PromptCache) -> NDArray[np.int64]:
        """Make rows of prompts that have been read; returns the rows."""
        self._lanes.add(lengths, prompts)
        self._lengths += lengths
        first, self.rows = self.rows, self.rows + len(lengths)
        return np.arange(first, self.rows)

    def _decode(self, lane: Lane) -> list[RowToken]:
        rows = np.array(lane.rows)
        at = torch.from_numpy(rows).to(self._device)
        position = self._length[at]
        tokens = max(self._lengths[row] for row in lane.rows) + 1
        self._table.begin(rows, None)
        lane.cache.decode(position, tokens)
        column = torch.arange(tokens, device=self._device).expand(len(rows), tokens)
        visible = (column <= position[:, None])[:, None]
        last = self._last[at][:, None]
        logits = self._forward(last, position[:, None], visible, column, lane.cache)
        self._length[at] += 1
        for row in lane.rows:
            self._lengths[row] += 1
        return self._next(rows, logits)

    def _forward(
        self, ids: Tensor, positions: Tensor, visible: Tensor, keys: Tensor, cache: Cache
    ) -> Tensor:
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
                past_key_values=cache,
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

    def _next(self, rows: NDArray[np.int64], logits: Tensor) -> list[RowToken]:
        at = torch.from_numpy(rows).to(self._device)
        uniforms = uniform(self._seed[at], self._step[at])
        token = sample(logits, self._temperature[at], self._top_p[at], uniforms)
        self._last[at] = token
        self._step[at] += 1
        self._table.check(rows, logits)
        fired, invalid = self._table.flags(rows)
        tokens = token.tolist()
        counts = [self._top_logprobs[row] for row in rows]
        if all(count is None for count in counts):
            flagged = zip(tokens, fired, invalid, strict=True)
            return [RowToken(t, fired=f, invalid=i) for t, f, i in flagged]
        logprobs = logits.log_softmax(-1)
        chosen = logprobs.gather(-1, token[:, None])[:, 0].tolist()
        most = max(max(count for count in counts if count is not None), 1)
        values, ids = (part.tolist() for part in logprobs.topk(most, dim=-1))
        result = []
        for i, count in enumerate(counts):
            top = tuple(zip(ids[i], values[i], strict=True))[: count or 0]
            logprob = None if count is None else chosen[i]
            result.append(RowToken(tokens[i], logprob, top, fired[i], invalid[i]))
        return result
