"""What the drivers share. A scenario is a function that has the model replies played, and then has
its framework work.

A driver is run as `PYTHON -m benchmarks.screens.frameworks.drivers.NAME URL` by a Python that has
the framework, and imports nothing of the project but this.
"""

from __future__ import annotations

import asyncio
import json
import sys
import traceback
import urllib.request
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, TypeVar

T = TypeVar("T")
MODEL = "gpt-4o-mini"
KEY = "no-key"
Reply = str | list[dict[str, Any]]
"""A text, or calls of tools."""


def call(name: str, arguments: Mapping[str, Any] | str) -> dict[str, Any]:
    """A call of a tool, for a reply; a text as arguments may be broken JSON."""
    return {"name": name, "arguments": arguments}


class Session:
    """The upstream of a run."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.url = f"{address}/v1"
        self._scenario = ""
        self._runner = asyncio.Runner()

    def wait(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of a coroutine: all run in one event loop, as clients want it."""
        return self._runner.run(work)

    def begin(self, scenario: str) -> None:
        self._scenario = scenario
        self.play()

    def play(self, *replies: Reply) -> None:
        """Have the model answer so from now on."""
        body = json.dumps({"scenario": self._scenario, "replies": replies}).encode()
        headers = {"content-type": "application/json"}
        asked = urllib.request.Request(f"{self.address}/play", body, headers)
        with urllib.request.urlopen(asked, timeout=30):
            pass


def run(scenarios: Sequence[Callable[[Session], object]]) -> None:
    """Run all scenarios; the process fails where one of them does, once all have run."""
    session = Session(sys.argv[1])
    failed = []
    for scenario in scenarios:
        session.begin(scenario.__name__)
        try:
            scenario(session)
        except Exception:
            traceback.print_exc()
            failed.append(scenario.__name__)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")
