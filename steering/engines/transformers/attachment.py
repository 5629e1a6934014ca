"""Guards on a caller's transformers model, for `model.generate` as it is.

Hooks before and after the model's forward distinguish prompts from generated tokens by the length
of the cache, and sequences that are run whole again by what was run before. After each forward the
hooks on the decoder layers must have run, each once: code that was compiled before would leave them
out, so it runs as plain Python while guards are attached. What guards cannot follow (beams that
swap rows, drafts of several tokens, a cache of an earlier call) is a fault, noticed before it runs.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from threading import RLock, get_ident
from typing import Any, NoReturn

from torch import Tensor, nn

from steering.engines.eager import pause_compiled
from steering.engines.errors import Unfollowed
from steering.engines.transformers.calls import (
    ForwardCall,
    cache_of,
    last_of,
    positional_names,
    require_followed,
)
from steering.engines.transformers.layers import decoder_layers
from steering.engines.transformers.whole_sequences import WholeSequences
from steering.hidden.bank import HiddenBank
from steering.hidden.rows import Reading, RowGuard
from steering.hidden.seam import HiddenSeam
from steering.hidden.table import Table, without_sink

_UNANNOUNCED = (
    "a decoder layer runs outside of the model's own call, where guards do not see the prompt: "
    "call the model that was attached, not a part of it, a wrapper around it, or its forward method"
)
_TWICE = "two calls at the same time cannot be guarded: run them one after the other"
_LEFT = "the context of guard.attached has ended while the model was generating: wait for it inside"


class Attachment:
    """Hooks on `model` until `remove`; every row of its batches carries `guards`.

    `after(attachment)` is called after each forward and may raise to end the generation.
    `failed(reason)` is called at a fault; where it returns, the call goes on without guards, and
    `fault` is its reason.
    """

    def __init__(
        self,
        model: Any,
        bank: HiddenBank,
        guards: Sequence[RowGuard],
        after: Callable[[Attachment], None],
        failed: Callable[[str], None],
    ) -> None:
        self._model, self._bank, self._guards = model, bank, guards
        self._after, self._failed = after, failed
        self._table: Table | WholeSequences = Table(bank, 0)
        self.rows = 0
        self.began = time.monotonic()
        """Start of the last batch, on the clock of `time.monotonic`."""
        self.fault: str | None = None
        """Why the last batch has run without guards; None where it has not."""
        self._prompt: ForwardCall | None = None
        """The forward that began the batch."""
        self._last: ForwardCall | None = None
        """The last forward of a batch without a cache."""
        self._cache: Callable[[], Any] = _nothing
        self._length = 0
        """The number of tokens in the cache."""
        self._generation = RLock()
        self._generating = self._forwarding = 0
        """The thread that is in a call of generate, in a forward; 0 for none."""
        self._left = False
        self._window: int | None = getattr(model.config.get_text_config(), "sliding_window", None)
        self._names = positional_names(model)
        self._seam = _AttachedSeam(list(decoder_layers(model)), self._fail_unannounced, self._fail)
        self._resume = pause_compiled()
        try:
            self._install()
        except BaseException:
            self._resume()
            raise

    def _install(self) -> None:
        self._seam.install(self._bank.layers)
        self._handles = [
            self._model.register_forward_pre_hook(self._before, with_kwargs=True),
            self._model.register_forward_hook(self._check),
            self._model.register_forward_hook(self._end, always_call=True),
        ]
        self._replaced = {
            # beams swap rows outside the forward: only the arguments of the call show them
            "generate": self._checked_generate,
            "generate_batch": self._refused("generate_batch"),
            "init_continuous_batching": self._refused("continuous batching"),
        }
        self._replaced = {
            name: wrapper for name, wrapper in self._replaced.items() if hasattr(self._model, name)
        }
        if hasattr(self._model, "generate"):
            self._generate = self._model.generate
        self._own = {name: vars(self._model).get(name) for name in self._replaced}
        for name, wrapper in self._replaced.items():
            setattr(self._model, name, wrapper)

    def remove(self) -> None:
        """Restore the model as it was.

        Raises Unfollowed where another thread is still generating: its next forward fails.
        """
        for name, value in self._own.items():
            if value is None:
                delattr(self._model, name)
            else:
                setattr(self._model, name, value)
        self._left = True  # before it is known who unhooks: a generation may end just now
        if not self._generation.acquire(blocking=False):
            raise Unfollowed(_LEFT)
        self._generation.release()
        self._unhook()

    def _unhook(self) -> None:
        handles, self._handles = self._handles, []
        if not handles:
            return  # it has been done
        self._seam.remove()
        for handle in handles:
            handle.remove()
        self._resume()

    def readings(self, row: int) -> dict[str, Reading]:
        """The readings of the guards of `row` of the last batch, by the guard's name."""
        return {} if self.fault else self._table.readings(row)

    def flags(self) -> tuple[list[bool], list[bool]]:
        """For each row of the batch: has a guard fired, has a guard met NaN."""
        if self.fault:
            return [False] * self.rows, [False] * self.rows
        return self._table.flags(slice(0, self.rows))

    # -- calls of generate ------------------------------------------------------------------------

    def _checked_generate(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return self._followed_generate(args, kwargs)
        except BaseException:
            _end_streamer(kwargs.get("streamer", args[7] if len(args) > 7 else None))
            raise

    def _followed_generate(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not self._generation.acquire(blocking=False):
            self._refuse(_TWICE)
        try:
            self._generating = get_ident()
            self._prompt = self._last = self.fault = None
            with self._followed():
                generate = type(self._model).generate
                require_followed(self._model, generate, (self._model, *args), kwargs)
            return self._generate(*args, **kwargs)
        finally:
            self._generating = 0
            self._generation.release()
            if self._left:
                self._unhook()

    def _refused(self, name: str) -> Callable[..., Any]:
        def refuse(*_args: Any, **_kwargs: Any) -> Any:
            self._refuse(f"{name} cannot be guarded: call generate")

        return refuse

    # -- forwards ---------------------------------------------------------------------------------

    def _before(self, _model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        here = get_ident()
        if self._left:
            self._refuse(_LEFT)
        if self._forwarding not in (0, here) or self._generating not in (0, here):
            self._refuse(_TWICE)
        self._forwarding = here
        with self._followed():
            self._announce(ForwardCall.of(self._names, args, kwargs))

    def _announce(self, call: ForwardCall) -> None:
        """Begin the forward in the table of the batch. Raises Unfollowed."""
        if self.fault and (self._generating or call.past):
            self.rows = call.rows
            return
        if call.past == 0 and not self._runs_on(call):
            self._begin(call)
        elif call.past == 0:
            assert self._prompt is not None
            real = call.real(self._window).cpu().numpy()
            self._table = WholeSequences(
                self._bank, self._guards, real, self._prompt.tokens, self._image(call)
            )
            self._last = call.inputs_alone
        elif self._is_next(call) and isinstance(self._table, Table):
            self._table.begin(slice(0, call.rows), None)
            self._length += 1
        else:
            raise Unfollowed(
                f"{call.tokens} tokens after a cache of {call.past} cannot be guarded: pass the "
                "whole prompt to generate, and then one token at a time with the same cache"
            )
        self._seam.consult(self._table)

    def _runs_on(self, call: ForwardCall) -> bool:
        """Whether a forward without a cache goes on with the rows of the one before it."""
        before = self._last or self._prompt
        if not self._generating or before is None:
            return call.continues(before)
        if (call.rows, call.tokens) != (before.rows, before.tokens + 1):
            raise Unfollowed(
                f"a forward of {call.rows} x {call.tokens} tokens inside of generate cannot be "
                "guarded: leave out what runs the model a second time"
            )
        return True

    def _is_next(self, call: ForwardCall) -> bool:
        """Whether a forward runs the next token of each row, with the cache of the batch."""
        return (call.tokens, call.rows, call.past) == (1, self.rows, self._length) and (
            self._cache() is call.cache
        )

    def _begin(self, call: ForwardCall) -> None:
        real = call.real(self._window).to(self._bank.device)
        table = Table(self._bank, call.rows)
        for row in range(call.rows):
            table.add(row, self._guards)
        self.rows, self.began, self.fault = call.rows, time.monotonic(), None
        self._prompt, self._last, self._length = call.inputs_alone, None, call.tokens
        self._cache = _reference(call.cache)
        self._table = table
        table.begin(slice(0, call.rows), without_sink(real), image=self._image(call))

    def _image(self, call: ForwardCall) -> Tensor | None:
        """The tokens of images, where a guard tells them from others."""
        if not self._bank.selective:
            return None
        image = call.image(self._model.config)
        return None if image is None else image.to(self._bank.device)

    def _check(self, _model: nn.Module, _args: Any, output: Any) -> None:
        if self.fault is None and self._guards:
            with self._followed():
                self._seam.require_passed()
        self._seam.consult(None)
        if self.fault is None:
            if self._cache() is None:
                self._cache = _reference(cache_of(output))
            if (last := last_of(output)) is not None:
                self._table.check(slice(0, self.rows), last.to(self._bank.device))
        self._after(self)

    def _end(self, _model: nn.Module, _args: Any, _output: Any) -> None:
        """After a forward, whether it has ended or failed."""
        if self._forwarding == get_ident():
            self._forwarding = 0
            self._seam.consult(None)

    # -- faults -----------------------------------------------------------------------------------

    @contextmanager
    def _followed(self) -> Iterator[None]:
        try:
            yield
        except Unfollowed as error:
            self._fail(str(error))

    def _fail(self, reason: str) -> None:
        """The batch cannot be guarded: raise, or let it go on without guards."""
        self._seam.consult(None)
        self._failed(reason)
        self.fault = reason

    def _refuse(self, reason: str) -> NoReturn:
        """Raise, whatever the policy: this call would disturb another one that is guarded."""
        self._failed(reason)
        raise Unfollowed(reason)

    def _fail_unannounced(self) -> None:
        if self.fault is None or self._forwarding != get_ident():
            self._fail(_LEFT if self._left else _UNANNOUNCED)


class _AttachedSeam(HiddenSeam):
    """Hooks that report layers that run outside of an announced forward, and other faults."""

    def __init__(
        self,
        layers: Sequence[nn.Module],
        unannounced: Callable[[], None],
        failed: Callable[[str], None],
    ) -> None:
        super().__init__(layers)
        self._unannounced, self._failed = unannounced, failed

    def unannounced(self) -> None:
        self._unannounced()

    def unfollowed(self, reason: str) -> None:
        self._failed(reason)


def _end_streamer(streamer: Any) -> None:
    """End a streamer whose generation has failed: its reader would wait for ever."""
    if streamer is None:
        return
    with suppress(Exception):
        if hasattr(streamer, "token_cache"):
            # words that are not yet out: they may be what has led to the block
            streamer.token_cache = []
        streamer.end()


def _reference(value: Any) -> Callable[[], Any]:
    """A weak reference where there can be one: a cache is large, and may be gone."""
    if value is None:
        return _nothing
    try:
        return weakref.ref(value)
    except TypeError:
        return lambda: value


def _nothing() -> None:
    return None
