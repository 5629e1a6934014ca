"""Verdicts in the answers of the app behind the screens: this server's own, or that of an upstream
which is guarded too. They are no texts that a model wrote, so they are taken out before it is read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, get_args

from guard.verdict import (
    MOST_FINDINGS,
    Finding,
    GuardVerdict,
    Outcome,
    VerdictDetail,
    gravest,
    shown,
)

_OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)
_WORD = re.compile(r"[\w.:/@+\[\]-]{0,160}", re.ASCII)
_MAX_GUARDS = 1000
_REASON = "could not be applied by the app behind these screens"
"""Stands for the app's own reason, which is a free text."""
_TEXTS = ("guard", "concept", "method", "action", "place")
_NUMBERS = ("score", "threshold", "position", "steps", "after", "area", "peak")
_REQUIRED = ("guard", "concept", "method", "threshold", "fired", "action")


@dataclass(frozen=True, slots=True)
class AppVerdict:
    """The verdict of one row of the app, as far as the app tells it."""

    outcome: Outcome
    guards: tuple[GuardVerdict, ...]
    members: Mapping[str, Any]

    @classmethod
    def parse(cls, value: Any) -> AppVerdict | None:
        """None where `value` is no verdict, but a text like any other."""
        if not isinstance(value, dict) or value.get("outcome") not in _OUTCOMES:
            return None
        if not (_is_word(value.get("request_id")) and _is_word(value.get("policy"))):
            return None
        listed = value.get("guards")
        entries = listed[:_MAX_GUARDS] if isinstance(listed, list) else []
        guards = tuple(guard for entry in entries if (guard := _guard(entry)) is not None)
        members: dict[str, Any] = {
            name: value[name]
            for name in ("request_id", "model", "policy", "outcome")
            if _is_word(value.get(name))
        }
        if isinstance(listed, list):
            members["guards"] = [guard.as_dict() for guard in guards]
        if _is_number(value.get("elapsed_ms")):
            members["elapsed_ms"] = value["elapsed_ms"]
        if isinstance(unscreened := value.get("unscreened"), list):
            members["unscreened"] = [name for name in unscreened if _is_word(name)]
        return cls(value["outcome"], guards, members)


class TakenVerdicts:
    """The verdicts of one body or event, which they have been taken out of."""

    def __init__(self, body: dict[str, Any]) -> None:
        self._rows: dict[int, AppVerdict] = {}
        self.of_body: AppVerdict | None = None
        for holder in (body, *_parts(body)):
            if "guard" in holder and (verdict := AppVerdict.parse(holder["guard"])) is not None:
                del holder["guard"]
                if holder is body or holder is body.get("response"):
                    self.of_body = self.of_body or verdict
                else:
                    self._rows[id(holder)] = verdict

    def __bool__(self) -> bool:
        return bool(self._rows) or self.of_body is not None

    @property
    def outcome(self) -> Outcome:
        """The most severe one."""
        verdicts = [*self._rows.values(), *([self.of_body] if self.of_body else [])]
        return gravest(verdict.outcome for verdict in verdicts)

    @property
    def guards(self) -> tuple[GuardVerdict, ...]:
        """The guards of the verdict on the body, or on its first row."""
        first = self.of_body or next(iter(self._rows.values()), None)
        return first.guards if first is not None else ()

    def put_back(self, body: dict[str, Any], detail: VerdictDetail, screened: Outcome) -> None:
        """Give the rows of a body or event their verdicts again, as far as the client is told.

        Those that are milder than `screened`, the outcome of the screens, are left out: they would
        say that an answer has passed which the screens have altered.
        """
        for holder in _parts(body) if self._rows else ():
            verdict = self._rows.get(id(holder))
            if verdict is None or gravest([verdict.outcome, screened]) != verdict.outcome:
                continue
            guard = shown(verdict.members, detail)
            if guard is not None:
                holder["guard"] = guard


def _parts(body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The objects in a body or an event that may have a verdict of their own."""
    if isinstance(response := body.get("response"), dict):
        yield response
    for name in ("choices", "data"):
        rows = body.get(name)
        yield from (
            row for row in (rows if isinstance(rows, list) else ()) if isinstance(row, dict)
        )


def _guard(value: Any) -> GuardVerdict | None:
    if not isinstance(value, dict) or not value.keys() >= set(_REQUIRED):
        return None
    known: dict[str, Any] = {name: value[name] for name in _TEXTS if _is_word(value.get(name))}
    known |= {name: value.get(name) for name in _NUMBERS if _is_number(value.get(name))}
    known["fired"] = value["fired"] is True
    if value.get("error") is not None:
        known["error"] = _REASON
    if isinstance(findings := value.get("findings"), list):
        read = map(_finding, findings[:MOST_FINDINGS])
        known["findings"] = tuple(finding for finding in read if finding is not None)
    try:
        return GuardVerdict(**{"score": None, **known})
    except TypeError:  # a member that it needs is no word, or no number
        return None


def _finding(value: Any) -> Finding | None:
    if not isinstance(value, dict):
        return None
    kind: Any = value.get("kind")
    confidence: Any = value.get("confidence")
    country: Any = value.get("country")
    if not (_is_word(kind) and _is_number(confidence) and (country is None or _is_word(country))):
        return None
    return Finding(kind=kind, confidence=confidence, country=country)


def _is_word(value: Any) -> bool:
    return isinstance(value, str) and _WORD.fullmatch(value) is not None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
