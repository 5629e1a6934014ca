"""The overlays on an engine's rows: a LoRA adapter each, and those of guards that have fired."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steering.engines.transformers.adapters.products import Carried
from steering.engines.transformers.adapters.seam import AdapterSeam, OverlaySeam
from steering.hidden.bank import HiddenBank
from steering.hidden.table import Table


class RowOverlays:
    """By row: the name of its adapter, and the overlays of its guards that act on it."""

    def __init__(self, model: Any, adapters: AdapterSeam | None) -> None:
        self._model, self._adapters = model, adapters
        self.use(OverlaySeam(model, {}))
        self.clear(0)

    def seam_for(self, bank: HiddenBank) -> OverlaySeam:
        """The overlays of `bank` on the model. Raises ValueError where one does not fit."""
        return OverlaySeam(self._model, bank.overlays)

    def use(self, overlays: OverlaySeam) -> None:
        """Know these overlays of guards from now on."""
        self._overlays = overlays

    def clear(self, rows: int) -> None:
        """Let no row carry anything."""
        self._adapter: list[str | None] = [None] * rows
        self._fired: list[tuple[Carried, ...]] = [()] * rows

    def check(self, adapter: str | None) -> None:
        """Raise ValueError for an adapter that there is not."""
        if adapter is not None and adapter not in (self._adapters or ()):
            raise ValueError(f"there is no adapter {adapter!r}")

    def add(self, row: int, adapter: str | None) -> None:
        """Put a fresh request on `row`."""
        self._adapter[row], self._fired[row] = adapter, ()

    def move(self, source: int, target: int) -> None:
        """Let the request on row `source` live on row `target` from now on."""
        self._adapter[target] = self._adapter[source]
        self._fired[target] = self._fired[source]

    def decide(self, table: Table, rows: NDArray[np.int64]) -> tuple[list[int], list[int]]:
        """Once the prompts of `rows` are read: take up the overlays of guards that have fired.
        Returns which of `rows` have their whole prompt to be read again under these, and which
        its last token alone."""
        whole: list[int] = []
        last: list[int] = []
        for place, guards in table.fired_overlays(rows).items():
            carried = tuple(Carried(*guard) for guard in guards)
            self._fired[rows[place]] = carried
            (whole if self._overlays.rereads(carried) else last).append(place)
        return whole, last

    @contextmanager
    def acting(self, rows: NDArray[np.int64]) -> Iterator[None]:
        """Apply what `rows` carry to the forward inside, of these rows."""
        with ExitStack() as contexts:
            if self._adapters is not None:
                contexts.enter_context(self._adapters.acting([self._adapter[row] for row in rows]))
            contexts.enter_context(self._overlays.acting([self._fired[row] for row in rows]))
            yield
