"""The parts of a run, by name, in their order: the dearest questions first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from tests.gpu.settings import Add, Settings


@dataclass(frozen=True)
class Entry:
    """`measure(settings, add, **arguments)` of a module of this package, and its limit in seconds
    on a GPU."""

    module: str
    limit: float
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def run(self, settings: Settings, add: Add) -> None:
        """Measure; each figure goes to `add`. Raises Skipped where that cannot be done here."""
        module = import_module(f"{__name__}.{self.module}")
        module.measure(settings, add, **self.arguments)


PARTS: Mapping[str, Entry] = {
    "table": Entry("table", 25),
    "runner-v2": Entry("same_requests", 105, {"runner": "v2"}),
    "runner-v1": Entry("same_requests", 100, {"runner": "v1"}),
    "drafts": Entry("drafts", 65),
    "throughput-graphs": Entry("throughput", 170, {"graphs": True}),
    "throughput-eager": Entry("throughput", 90, {"graphs": False}),
    "transformers": Entry("language", 60),
    "images": Entry("images", 60),
    "screens": Entry("screens", 40),
}
