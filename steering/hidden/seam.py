"""The hidden seam: forward hooks on decoder layers that let a table sense and act."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from steering.engines.transformers.layers import hidden_of, with_hidden
from steering.hidden.table import Table


class HiddenSeam:
    """Hooks that consult a table during the forwards that run inside `consulting`.

    Outside, and wherever the table has nothing to do, a hook returns None, and torch passes the
    layer's output object on, untouched.
    """

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        self._layers = layers
        self._table: Table | None = None
        self._handles: list[Any] = []

    def install(self, hooked: Sequence[int]) -> None:
        """Hook the layers with these indices; replaces earlier hooks."""
        self.remove()
        for index in hooked:
            hook = self._hook(index)
            self._handles.append(self._layers[index].register_forward_hook(hook))

    def remove(self) -> None:
        """Remove every hook: the modules are as before."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def consult(self, table: Table | None) -> None:
        """Let the next forwards consult `table`; None for none."""
        self._table = table

    @contextmanager
    def consulting(self, table: Table) -> Iterator[None]:
        """Let the forwards inside consult `table`, on which `begin` has been called."""
        self.consult(table)
        try:
            yield
        finally:
            self.consult(None)

    def _hook(self, layer: int) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> Any:
            table = self._table
            if table is None or not (table.senses or table.acts):
                return None
            hidden = hidden_of(output)
            if table.senses and layer in table.bank.sense_layers:
                table.sense(layer, hidden)
            if table.acts and layer in table.bank.act_layers:
                return with_hidden(output, table.act(layer, hidden))
            return None

        return hook
