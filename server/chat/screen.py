"""What the chat shows: answers as they come, a line for each verdict, errors in one line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

_COLOURS = {"pass": "green", "blocked": "red", "error": "red"}
_KEPT = "\n\t"
_REASONS = {"length": "cut at the longest length", "content_filter": "blocked by the policy"}


class Screen:
    """Answers go to `out`, all else to `err`; `failed` says whether an error was shown."""

    def __init__(self, out: Console, err: Console) -> None:
        self._out, self._err = out, err
        self.failed = False

    def piece(self, text: str) -> None:
        """A part of an answer; a terminal obeys none of its characters."""
        self._out.print(plain(text), end="", markup=False, highlight=False, soft_wrap=True)
        self._out.file.flush()

    def end(self) -> None:
        """The answer is over."""
        self._out.print()

    def verdict(self, verdict: Mapping[str, Any] | None, reason: str) -> None:
        """The line below an answer."""
        line = verdict_line(verdict)
        if reason in _REASONS:
            line += f" · {_REASONS[reason]}"
        colour = _COLOURS.get((verdict or {}).get("outcome", "pass"), "yellow")
        self._err.print(f"[{line}]", style=f"dim {colour}", markup=False, highlight=False)

    def note(self, text: str) -> None:
        self._err.print(plain(text), style="dim", markup=False, highlight=False)

    def error(self, message: str) -> None:
        self.failed = True
        line = plain(" ".join(message.split()))
        self._err.print(f"error: {line}", style="red", markup=False, highlight=False)


def plain(text: str) -> str:
    """`text` without characters that control a terminal."""
    return "".join(c if c in _KEPT or c.isprintable() else "\ufffd" for c in text)


def verdict_line(verdict: Mapping[str, Any] | None) -> str:
    """A verdict in a line: policy, outcome, and the guards that fired or could not be applied."""
    if verdict is None:
        return "the server tells nothing of its verdict"
    line = f"{verdict['policy']}: {verdict['outcome']}"
    guards: Sequence[Mapping[str, Any]] = verdict.get("guards", ())
    told = [_guard(guard) for guard in guards if guard["fired"] or guard["error"]]
    return " · ".join([line, *told])


def _guard(guard: Mapping[str, Any]) -> str:
    if guard["error"]:
        return f"{guard['guard']} failed: {guard['error']}"
    score, threshold = guard["score"], guard["threshold"]
    over = "" if score is None or threshold is None else f" ({score:.2f} over {threshold:.2f})"
    return f"{guard['guard']} {guard['action']}{over}"
