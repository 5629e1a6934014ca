"""What the guards of a forward tell the scheduler."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from vllm.v1.outputs import AsyncModelRunnerOutput

from steering.hidden.rows import Reading, RowGuard


@dataclass(frozen=True)
class RowPlan:
    """The guards of a request.

    `blocks`: a guard that fires, and is none of `shadows`, ends the request; `closed`: so does an
    invalid reading.
    """

    guards: Sequence[RowGuard]
    blocks: bool
    closed: bool
    shadows: frozenset[str] = frozenset()


@dataclass(frozen=True)
class RowReport:
    """The readings of a request's guards by the end of a forward.

    `keep` None: the request goes on; else it ends, with that many of the forward's tokens. `cut[i]`
    is the report where the scheduler takes only the first i + 1 of several tokens.
    """

    readings: Sequence[Reading]
    keep: int | None
    cut: Sequence[RowReport] = ()

    def of(self, tokens: int) -> RowReport:
        """The report where only the first `tokens` of the forward were taken."""
        return self.cut[tokens - 1] if 0 < tokens <= len(self.cut) else self


class HostCopy:
    """A tensor on its way to the host, which it reaches while other work goes on."""

    def __init__(self, tensor: Tensor) -> None:
        self._ready: Any = None
        self._values = tensor.to("cpu", non_blocking=True)
        if tensor.device.type == "cuda":
            self._ready = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
            self._ready.record()

    def wait(self) -> Tensor:
        """The values, once they are there."""
        if self._ready is not None:
            self._ready.synchronize()
        return self._values


class GuardedOutput(AsyncModelRunnerOutput):  # type: ignore[misc]
    """An output of vLLM on its way from the device; `report` adds what the guards tell, once it is
    there."""

    def __init__(self, output: Any, report: Callable[[Any], None]) -> None:
        self._output, self._report = output, report

    def get_output(self) -> Any:
        """vLLM's output, with the reports as its attribute `guard`."""
        output = self._output.get_output()
        self._report(output)
        return output
