"""Continuous batching for a transformers language model, with guards on each row.

The engine handles rows and tokens alone: the service above it queues requests, ends them and sends
text to clients. Rows are dense (`0..n-1`); `drop` fills each hole with the last row.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers.cache_utils import Cache

from steering.engines.transformers.adapters.rows import RowOverlays
from steering.engines.transformers.adapters.seam import AdapterSeam
from steering.engines.transformers.cache import PromptCache
from steering.engines.transformers.forwards import LanguageForward, prompt_positions
from steering.engines.transformers.lanes import Lane, Lanes
from steering.engines.transformers.layers import decoder_layers
from steering.engines.transformers.padded import PaddedPrompts
from steering.engines.transformers.row_tokens import RowToken, row_tokens
from steering.engines.transformers.sampling import RowSampling
from steering.engines.transformers.sampling.state import SamplingState
from steering.engines.transformers.vision.base import VisionFamily
from steering.engines.transformers.vision.images import ForwardImages, ImageEncoder, PromptImages
from steering.hidden.bank import HiddenBank
from steering.hidden.rows import Reading, RowGuard
from steering.hidden.seam import HiddenSeam
from steering.hidden.table import EarlierTurns, Table
from steering.prompt import Prompt


@dataclass(frozen=True)
class RowStart:
    """A row to be added: its prompt (not empty), the guards it carries, its sampling, and the name
    of the LoRA adapter that it runs with. `debug`: its tokens come with the `gates` of guards."""

    prompt: Prompt
    guards: Sequence[RowGuard]
    sampling: RowSampling
    adapter: str | None = None
    debug: bool = False


@dataclass(frozen=True)
class PromptReading:
    """A prompt that is read in parts: its images, and the keys and values of what was read; `again`
    where it is read a second time, under the overlays of guards that have fired."""

    prompt: Prompt
    images: PromptImages | None
    cache: PromptCache
    again: bool = False


class TransformersEngine:
    """Runs one causal language model with up to `capacity` rows. Not thread-safe.

    Short prompts are added with `prefill`, each group in one forward. A long one is added with
    `begin` and read in parts with `read`, while the rows go on with `decode` in between; it becomes
    a row at its end.

    `vision` is the family of a vision-language model, whose prompts may have images; they are
    encoded once, before any token of the prompt is read. `adapters` are those that rows may carry.

    Guards decide on the prompt as the bare model reads it. Where one with an overlay fires, the
    prompt is read again under it, or its last token, before the first token is generated.

    Raises UnknownArchitecture where the decoder layers cannot be found, and ValueError for guards
    whose overlays do not fit the model.
    """

    def __init__(
        self,
        model: Any,
        bank: HiddenBank,
        *,
        capacity: int,
        vision: VisionFamily | None = None,
        adapters: AdapterSeam | None = None,
    ) -> None:
        self._run = LanguageForward(model.eval(), vision)
        self._images = None if vision is None else ImageEncoder(model, vision)
        self._axes = 1 if vision is None else vision.axes
        self._device, self._layers = self._run.device, self._run.layers
        self._vocabulary = int(model.config.get_text_config().vocab_size)
        self.capacity = capacity
        self._seam = HiddenSeam(list(decoder_layers(model)))
        self._overlays = RowOverlays(model, adapters)
        self.rows = 0
        self.use(bank)

    def use(self, bank: HiddenBank) -> None:
        """Run with the guards of `bank` from now on. Drops all live rows."""
        self._overlays.use(self._overlays.seam_for(bank))
        self._bank = bank
        self._seam.install(bank.layers)
        self.reset()

    def rebank(self, bank: HiddenBank) -> None:
        """Go on with the guards of `bank` in the next forward.

        Live rows, and the prompt that is being read, keep their guards and the state of these.
        Raises ValueError where the bank lacks one of them, or an overlay does not fit the model.
        """
        overlays = self._overlays.seam_for(bank)
        self._table.rebank(bank)
        self._overlays.use(overlays)
        self._bank = bank
        self._seam.install(bank.layers)

    def reset(self) -> None:
        """Drop all rows and clear the cache."""
        self.rows = 0
        self._lanes = Lanes(self._layers)
        self._lengths: list[int] = []
        self._reading: PromptReading | None = None
        # the state of a prompt that is being read stands behind that of the rows
        states = self.capacity + 1
        self._table = Table(self._bank, states)
        integers: dict[str, Any] = {"dtype": torch.long, "device": self._device}
        self._length = torch.zeros(states, **integers)
        # what the position of a row's next token is ahead of their number, which images compress
        self._ahead = torch.zeros(states, **integers)
        self._last = torch.zeros(states, **integers)
        self._sampling = SamplingState(states, self._vocabulary, self._device)
        self._overlays.clear(states)

    def close(self) -> None:
        """Remove the hooks from the model."""
        self._seam.remove()

    def readings(self, row: int) -> dict[str, Reading]:
        """The readings of the row's guards so far, by the guard's name."""
        return self._table.readings(row)

    @torch.inference_mode()
    def prefill(self, starts: Sequence[RowStart]) -> list[RowToken]:
        """Add rows behind the live ones and generate the first token of each, in one forward.

        Raises ValueError where they do not fit, and for a prompt that is empty or holds what the
        model does not take: no row has changed then.
        """
        self._check(starts)
        first, prompts = self.rows, [start.prompt for start in starts]
        padded = PaddedPrompts.of(prompts, self._encoded(starts), self._axes, self._device)
        for offset, start in enumerate(starts):
            self._add_row(first + offset, start)
        rows, images = np.arange(first, first + len(starts)), padded.images()
        sensed, earlier = padded.sensed([prompt.turn for prompt in prompts])
        places = None if images is None else images.places
        self._table.begin(rows, sensed, image=places, earlier=earlier)
        cache = PromptCache(self._layers, padded.width)
        logits = self._forward(rows, *padded.inputs, cache=cache, images=images)
        logits = self._read_again(rows, padded, cache, logits)
        return self._next(self._place([*map(len, prompts)], cache), logits)

    def _read_again(
        self, rows: NDArray[np.int64], padded: PaddedPrompts, cache: PromptCache, logits: Tensor
    ) -> Tensor:
        """`logits`, and the states in `cache`, with those of the prompts that are read again under
        the overlays of guards that have fired."""
        whole, last = self._overlays.decide(self._table, rows)
        for places, past in ((whole, 0), (last, padded.width - 1)):
            if not places:
                continue
            at, part = torch.tensor(places, device=self._device), padded.part(places, past)
            again = cache.rows(at, past)
            self._table.begin_again(rows[places])
            read = self._forward(rows[places], *part.inputs, cache=again, images=part.images())
            cache.put(at, again)
            logits = logits.index_copy(0, at, read)
        return logits

    @torch.inference_mode()
    def begin(self, start: RowStart) -> None:
        """Begin to read one long prompt, which `read` goes on with.

        Raises ValueError as `prefill`, and while another prompt is being read.
        """
        if self._reading is not None:
            raise ValueError("another prompt is being read")
        self._check([start])
        (images,) = self._encoded([start])
        self._add_row(self.capacity, start)
        cache = PromptCache(self._layers, len(start.prompt))
        self._reading = PromptReading(start.prompt, images, cache)

    @torch.inference_mode()
    def read(self, most: int) -> RowToken | None:
        """Read at most `most` (one at least) further tokens of the prompt that was begun; more of
        them where an image, whose tokens attend to each other, would be cut.

        At its end the prompt becomes the last row; returns the first token that it generates, None
        before. Raises ValueError where no prompt is being read.
        """
        if self._reading is None:
            raise ValueError("no prompt is being read")
        prompt, cache, again = self._reading.prompt, self._reading.cache, self._reading.again
        first, last = cache.past, self._end_of_part(prompt, cache.past + most)
        keys = torch.arange(last, device=self._device)[None]
        index = keys[:, first:]
        positions = prompt_positions([prompt], index, self._axes)
        sensed = torch.ones(1, last - first, dtype=torch.bool, device=self._device)
        # as `without_sink`, for a prompt of which this may be a part
        sensed[0, 0] = first > 0 or len(prompt) == 1
        before = index < prompt.turn
        in_part = first <= prompt.turn < last
        earlier = EarlierTurns(sensed & before, in_part) if prompt.turn else None
        ends = last == len(prompt)
        images = ForwardImages.of(
            [self._reading.images], last, offsets=[0], first=first, device=self._device
        )
        places = None if images is None else images.places
        rows = np.array([self.capacity])
        if again:
            self._table.begin_again(rows, ends=ends)
        else:
            counted = sensed & ~before
            self._table.begin(rows, counted, ends=ends, image=places, earlier=earlier)
        visible = keys[:, None, :] <= index[:, :, None]
        ids = torch.tensor([prompt.tokens[first:last]], device=self._device)
        logits = self._forward(
            rows, ids, positions, visible, index, keys, cache=cache, images=images
        )
        cache.past = last
        if not ends:
            return None
        if not again:
            whole, lasts = self._overlays.decide(self._table, rows)
            if whole or lasts:
                cache.past = 0 if whole else last - 1
                self._reading = replace(self._reading, again=True)
                return None
        self._move(self.capacity, self.rows)
        self._reading = None
        return self._next(self._place([last], cache), logits)[0]

    def abandon(self) -> None:
        """Forget the prompt that is being read, if there is one."""
        if self._reading is not None:
            self._table.remove(self.capacity)
            self._sampling.remove(self.capacity)
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
            self._sampling.remove(last)
            self._lengths.pop()
            self.rows = last
        return moves

    @torch.inference_mode()
    def rewind(self, row: int, withdrawn: Sequence[int], last: int) -> None:
        """Withdraw the last tokens of a row, of which it has not read the very last; `last`, the
        token before them, is read again by the next forward. Guards that had begun to act behind it
        begin there. For rows without a grammar.

        Nothing else is computed again: what stands behind it in the cache is overwritten.
        """
        self._length[row] -= len(withdrawn)
        self._lengths[row] -= len(withdrawn)
        self._last[row] = last
        self._sampling.withdraw(row, withdrawn)
        self._table.rewind(row, len(withdrawn))

    def _check(self, starts: Sequence[RowStart]) -> None:
        rows = self.rows + len(starts) + (self._reading is not None)
        if rows > self.capacity:
            raise ValueError(f"{rows} rows do not fit a capacity of {self.capacity}")
        if not all(len(start.prompt) for start in starts):
            raise ValueError("a prompt has no tokens: there is nothing to continue")
        for start in starts:
            if self._images is None:
                start.prompt.require_text()
            else:
                self._images.check(start.prompt)
            self._overlays.check(start.adapter)

    def _encoded(self, starts: Sequence[RowStart]) -> list[PromptImages | None]:
        if self._images is None:
            return [None] * len(starts)
        return self._images.encode([start.prompt for start in starts])

    def _end_of_part(self, prompt: Prompt, last: int) -> int:
        """Where a part of a prompt ends that would end at `last`."""
        if self._run.images_are_whole:
            last = max([last, *(m.stop for m in prompt.media if m.start < last)])
        return min(last, len(prompt))

    def _add_row(self, row: int, start: RowStart) -> None:
        self._table.add(row, start.guards)
        if start.debug:
            self._table.show(row)
        self._sampling.add(row, start.sampling, start.prompt.tokens)
        self._overlays.add(row, start.adapter)
        self._length[row] = len(start.prompt)
        self._ahead[row] = start.prompt.next_position - len(start.prompt)

    def _move(self, source: int, target: int) -> None:
        self._table.move(source, target)
        self._sampling.move(source, target)
        self._overlays.move(source, target)
        for state in (self._length, self._ahead, self._last):
            state[target] = state[source]

    def _place(self, lengths: Sequence[int], prompts: PromptCache) -> NDArray[np.int64]:
        """Make rows of prompts that have been read; returns the rows."""
        self._lanes.add(lengths, prompts)
        self._lengths += lengths
        first, self.rows = self.rows, self.rows + len(lengths)
        return np.arange(first, self.rows)

    def _decode(self, lane: Lane) -> list[RowToken]:
        rows = np.array(lane.rows)
        at = torch.from_numpy(rows).to(self._device)
        index = self._length[at][:, None]
        tokens = max(self._lengths[row] for row in lane.rows) + 1
        self._table.begin(rows, None)
        lane.cache.decode(index[:, 0], tokens)
        column = torch.arange(tokens, device=self._device).expand(len(rows), tokens)
        visible = (column <= index)[:, None]
        positions = index + self._ahead[at][:, None]
        if self._axes > 1:
            positions = positions.expand(self._axes, *positions.shape)
        last = self._last[at][:, None]
        logits = self._forward(rows, last, positions, visible, index, column, cache=lane.cache)
        self._length[at] += 1
        for row in lane.rows:
            self._lengths[row] += 1
        return self._next(rows, logits)

    def _forward(
        self,
        rows: NDArray[np.int64],
        *inputs: Tensor,
        cache: Cache,
        images: ForwardImages | None = None,
    ) -> Tensor:
        """Logits `[rows, vocabulary]` of the last column; `inputs` as `LanguageForward.logits`."""
        reading: AbstractContextManager[None] = nullcontext()
        if self._table.senses or self._table.acts:
            reading = self._seam.consulting(self._table)
        with self._overlays.acting(rows), reading:
            logits = self._run.logits(*inputs, cache=cache, images=images)
        return logits[:, -1].float()

    def _next(self, rows: NDArray[np.int64], logits: Tensor) -> list[RowToken]:
        token = self._sampling.choose(rows, logits)
        self._last[torch.from_numpy(rows).to(self._device)] = token
        self._table.check(rows, logits)
        flags = self._table.row_flags(rows)
        tokens = token.tolist()
        unmatched = self._sampling.follow(rows, tokens)
        settings = [self._sampling.settings[row] for row in rows]
        result = row_tokens(tokens, logits, flags, settings, unmatched)
        if self._table.keeps_scores:
            for place, row in enumerate(rows.tolist()):
                gates = tuple(self._table.take_scores(row))
                result[place] = replace(result[place], gates=gates)
        return result
