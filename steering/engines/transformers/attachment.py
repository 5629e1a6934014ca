"""Guards on a caller's transformers model, for `model.generate` as it is.

Hooks before and after the model's forward distinguish the prompt from generated tokens by the
length of the cache. Generation that guards cannot follow (beams that swap rows, drafts of several
tokens, a cache from an earlier call) raises Unfollowed instead of running unguarded.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from steering.engines.errors import Unfollowed
from steering.engines.transformers.layers import decoder_layers
from steering.hidden.bank import HiddenBank
from steering.hidden.rows import Reading, RowGuard
from steering.hidden.seam import HiddenSeam
from steering.hidden.table import Table, without_sink


class Attachment:
    """Hooks on `model` until `remove`; every row of its batches carries `guards`.

    `after(attachment)` is called after each forward and may raise to end the generation.
    """

    def __init__(
        self,
        model: Any,
        bank: HiddenBank,
        guards: Sequence[RowGuard],
        after: Callable[[Attachment], None],
    ) -> None:
        self._model, self._bank, self._guards, self._after = model, bank, guards, after
        self._table = Table(bank, 0)
        self.rows = 0
        self.began = time.monotonic()
        """Start of the last batch, on the clock of `time.monotonic`."""
        self._seam = HiddenSeam(list(decoder_layers(model)))
        self._seam.install(bank.layers)
        self._handles = [
            model.register_forward_pre_hook(self._before, with_kwargs=True),
            model.register_forward_hook(self._check),
        ]
        self._generate = model.generate
        self._instance_generate = vars(model).get("generate")
        # beams swap rows outside the forward: only the arguments of the call show them
        model.generate = self._checked_generate

    def remove(self) -> None:
        """Restore the model as it was."""
        self._seam.remove()
        for handle in self._handles:
            handle.remove()
        if self._instance_generate is None:
            del self._model.generate
        else:
            self._model.generate = self._instance_generate

    def readings(self, row: int) -> dict[str, Reading]:
        """The readings of the guards of `row` of the last batch, by the guard's name."""
        return self._table.readings(row)

    def flags(self) -> tuple[list[bool], list[bool]]:
        """For each row of the batch: has a guard fired, has a guard met NaN."""
        return self._table.flags(slice(0, self.rows))

    def _checked_generate(self, *args: Any, **kwargs: Any) -> Any:
        arguments = signature(self._generate).bind(*args, **kwargs).arguments
        arguments |= arguments.pop("kwargs", {})
        config = arguments.get("generation_config") or self._model.generation_config
        for name in ("num_beams", "prompt_lookup_num_tokens"):
            value = arguments.get(name, getattr(config, name, None))
            if value not in (None, 1):
                raise Unfollowed(f"{name}={value} cannot be guarded: use greedy search or sampling")
        for name in ("assistant_model", "past_key_values"):
            if arguments.get(name) is not None:
                raise Unfollowed(f"{name} cannot be guarded: leave it out")
        return self._generate(*args, **kwargs)

    def _before(self, _model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        inputs = args[0] if args else kwargs.get("input_ids")
        if inputs is None:
            inputs = kwargs.get("inputs_embeds")
        if not isinstance(inputs, Tensor):
            raise Unfollowed("a forward without input_ids or inputs_embeds cannot be guarded")
        rows, tokens = inputs.shape[:2]
        cache = kwargs.get("past_key_values")
        past = 0 if cache is None else int(cache.get_seq_length())
        if past == 0:
            self._begin(rows, self._real(kwargs.get("attention_mask"), rows, tokens, inputs.device))
        elif tokens == 1 and rows == self.rows:
            self._table.begin(slice(0, rows), None)
        else:
            raise Unfollowed(
                f"{tokens} tokens after a cache of {past} cannot be guarded: pass the whole prompt "
                "to generate, and one token at a time"
            )
        busy = self._table.senses or self._table.acts
        self._seam.consult(self._table if busy else None)

    def _check(self, _model: nn.Module, _args: Any, output: Any) -> None:
        self._seam.consult(None)
        logits = getattr(output, "logits", None)
        if isinstance(logits, Tensor):
            self._table.check(slice(0, self.rows), logits[:, -1])
        self._after(self)

    def _begin(self, rows: int, real: Tensor) -> None:
        self._table = Table(self._bank, rows)
        for row in range(rows):
            self._table.add(row, self._guards)
        self.rows, self.began = rows, time.monotonic()
        self._table.begin(slice(0, rows), without_sink(real))

    @staticmethod
    def _real(mask: Any, rows: int, tokens: int, device: torch.device) -> Tensor:
        if mask is None:
            return torch.ones(rows, tokens, dtype=torch.bool, device=device)
        if not isinstance(mask, Tensor) or mask.ndim != 2 or mask.shape[1] != tokens:
            raise Unfollowed("only an attention_mask of shape [rows, tokens] can be guarded")
        real = mask.bool()
        if not bool(real[:, -1].all()):
            raise Unfollowed("a prompt ends in padding: pad on the left (padding_side='left')")
        return real
