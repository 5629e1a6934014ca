"""The hidden seam: forward hooks on decoder layers that let a table sense and act."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from torch import Tensor, nn

from steering.engines.errors import Unfollowed
from steering.engines.transformers.layers import hidden_of, with_hidden
from steering.hidden.bank import HiddenBank


class SeamTable(Protocol):
    """What the hooks consult: the guards on the rows `[rows, tokens, width]` of one forward."""

    @property
    def bank(self) -> HiddenBank: ...

    @property
    def senses(self) -> bool: ...

    @property
    def acts(self) -> bool: ...

    def sense(self, layer: int, hidden: Tensor) -> None: ...

    def act(self, layer: int, hidden: Tensor) -> Tensor: ...


class HiddenSeam:
    """Hooks that consult a table during the forwards that run inside `consulting`.

    Outside, and wherever the table has nothing to do, a hook returns None, and torch passes the
    layer's output object on, untouched.
    """

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        self._layers = layers
        self._table: SeamTable | None = None
        self._handles: list[Any] = []
        self._hooked: list[int] = []
        self._passed: list[int] = []

    def install(self, hooked: Sequence[int]) -> None:
        """Hook the layers with these indices; replaces earlier hooks."""
        self.remove()
        for index in hooked:
            hook = self._hook(index)
            self._handles.append(self._layers[index].register_forward_hook(hook))
        self._hooked = [*hooked]

    def remove(self) -> None:
        """Remove every hook: the modules are as before."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def consult(self, table: SeamTable | None) -> None:
        """Let the next forward consult `table`; None for none."""
        self._table = table
        self._passed.clear()

    def require_passed(self) -> None:
        """After a forward: raise Unfollowed unless it has passed each hook once, in order.

        Known on the host: costs no wait for the device.
        """
        if self._passed != self._hooked:
            missed = ", ".join(map(str, sorted({*self._hooked} - {*self._passed}))) or "none"
            raise Unfollowed(
                f"a forward has not passed the hooks on the decoder layers once each, in order "
                f"(not at all: {missed}): guards cannot act on code that was compiled, captured or "
                "traced before, on layers that are skipped, nor on a forward that was replaced"
            )

    @contextmanager
    def consulting(self, table: SeamTable) -> Iterator[None]:
        """Let the forward inside consult `table`, on which `begin` has been called.

        Raises Unfollowed as `require_passed`.
        """
        self.consult(table)
        try:
            yield
            self.require_passed()
        finally:
            self.consult(None)

    def unannounced(self) -> None:
        """Called where a hooked layer runs while no table is consulted."""

    def unfollowed(self, reason: str) -> None:
        """Called where the table cannot sense a forward. Raises Unfollowed, unless overridden."""
        raise Unfollowed(reason)

    def _hook(self, layer: int) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> Any:
            table = self._table
            if table is None:
                self.unannounced()
                return None
            self._passed.append(layer)
            if not (table.senses or table.acts):
                return None
            hidden = hidden_of(output)
            # the layers of a model may be spread over several devices
            states = hidden.to(table.bank.device)
            if table.senses and layer in table.bank.sense_layers:
                try:
                    table.sense(layer, states)
                except Unfollowed as error:
                    self.unfollowed(str(error))
                    return None
            if table.acts and layer in table.bank.act_layers:
                return with_hidden(output, table.act(layer, states).to(hidden.device))
            return None

        return hook
