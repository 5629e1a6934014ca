"""The HTTP request that vLLM's front end works on, for code that vLLM calls without it."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from guard.verdict import Outcome, gravest, shown
from server.observe.exchange import Exchange

current_call: ContextVar[HttpCall | None] = ContextVar("guarded_http_call", default=None)
"""None outside of HTTP: a batch from a file, gRPC, Python."""


@dataclass(eq=False)
class HttpCall:
    """One HTTP request under `policy`.

    `is_named`: the request names its policy. `is_screened`: the screens of text of its policy have
    let it pass, and read what is answered. `rows` are the answers that its body asks for.
    """

    exchange: Exchange
    policy: str
    is_named: bool = False
    is_screened: bool = False
    rows: int = 1
    by_choice: dict[int, dict[str, Any]] = field(default_factory=dict)
    """The verdicts so far, by the number of the choice, as far as clients are told."""
    blocked: set[int] = field(default_factory=set)
    """The choices that a guard has ended."""
    outcome: Outcome | None = None
    _choices: int = 0
    _names: itertools.count[int] = field(default_factory=itertools.count)

    def add(self, choice: int, verdict: Mapping[str, Any], *, is_blocked: bool) -> None:
        """Add the verdict of a choice."""
        self.outcome = gravest([self.outcome or "pass", verdict["outcome"]])
        if is_blocked:
            self.blocked.add(choice)
        if (guard := shown(verdict, self.exchange.detail)) is not None:
            self.by_choice[choice] = guard

    def add_prompt(self, choices: int) -> int:
        """Count the choices of one more prompt; returns the number of its first choice."""
        self._choices += choices
        return self._choices - choices

    def row_name(self) -> str:
        """The name of the next row in the audit log: the request's id, with a number where it asks
        for several answers."""
        number = next(self._names)
        return (
            self.exchange.request_id if self.rows == 1 else f"{self.exchange.request_id}/{number}"
        )
