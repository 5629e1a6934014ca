"""The findings of the screens on one request and its response, and the verdict on them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from guard.plans.screens import Screen, TextPlan, TextScreen
from guard.verdict import MOST_FINDINGS, OUTCOMES, Finding, GuardVerdict, Outcome, gravest
from server.screening.answers.app_verdicts import TakenVerdicts
from server.screening.spans import Span


@dataclass(frozen=True, slots=True)
class ScreenedText:
    """The score of one screen on one text or image. Patterns score 1 where they match, at
    `spans`."""

    screen: Screen
    score: float
    spans: tuple[Span, ...] = ()

    @property
    def fired(self) -> bool:
        """A classifier fires above its threshold, as it was calibrated, patterns by matching."""
        return bool(self.spans) if self.screen.head is None else self.screen.fires(self.score)


class TextReader(Protocol):
    """Runs screens on texts."""

    async def read(
        self, texts: Sequence[str], screens: Sequence[TextScreen], tail: int | None = None
    ) -> Sequence[Sequence[ScreenedText]]:
        """The results of all screens for each text; classifiers read its last `tail` characters,
        or all of it where that is None."""


class ResponseScreens(TextReader, Protocol):
    """Runs the screens on a response, and makes the verdict that it carries."""

    def guard_object(self) -> dict[str, Any] | None:
        """The `guard` object, the verdicts of the app in it; None where the client is not told."""

    def take_verdicts(self, body: dict[str, Any]) -> TakenVerdicts:
        """Take the verdicts of the app out of a body or an event, and count them."""

    def put_back(self, verdicts: TakenVerdicts, body: dict[str, Any]) -> None:
        """Give those of single rows back, as far as the client is told."""


@dataclass(slots=True)
class _Best:
    score: float
    place: str
    fired: bool = False
    action: str = "none"
    found: dict[tuple[str, str | None], float] = field(default_factory=dict)
    """The largest confidence of each kind and country: a stream reads its texts many times."""

    def add(self, spans: Iterable[Span]) -> None:
        for span in spans:
            key = (span.label, span.country)
            if key in self.found or len(self.found) < MOST_FINDINGS:
                self.found[key] = max(self.found.get(key, 0.0), span.confidence)


@dataclass(slots=True)
class Findings:
    """Collects the results of the screens on one request and its response."""

    plan: TextPlan
    unscreened: set[str] = field(default_factory=set)
    _best: dict[str, _Best] = field(default_factory=dict)
    _outcomes: set[Outcome] = field(default_factory=set)
    _error: str | None = None

    def add(
        self, results: Iterable[ScreenedText], place: str, *, in_response: bool = False
    ) -> list[ScreenedText]:
        """Add results for the text at `place`; return those that call for an action, blocks
        first."""
        acting = []
        for result in results:
            screen = result.screen
            best = self._best.get(screen.name)
            if best is None:
                best = self._best[screen.name] = _Best(result.score, place)
            elif not result.fired and result.score <= best.score:
                continue  # as most texts
            if (result.fired, result.score) > (best.fired, best.score):
                best.score, best.place, best.fired = result.score, place, result.fired
            if result.fired:
                best.add(result.spans)
                best.action = done = screen.done(in_response=in_response)
                self._outcomes.add(OUTCOMES[done])
                if done not in {"flag", "observe"}:
                    acting.append(result)
        if len(acting) > 1:
            acting.sort(key=lambda result: result.screen.action != "block")
        return acting

    def fail(self, reason: str) -> None:
        """Note that the screens could not be run."""
        self._error = reason

    @property
    def outcome(self) -> Outcome:
        """The outcome of the request so far."""
        failed = self._error or self.plan.broken
        if failed and "blocked" not in self._outcomes:
            return "error"
        return gravest(self._outcomes)

    def guards(self) -> tuple[GuardVerdict, ...]:
        """One verdict per screen of the policy."""
        verdicts = [self._guard_verdict(screen) for screen in self.plan.all_screens]
        broken = [
            GuardVerdict(name, "", "", None, 0.0, False, "none", error=reason)
            for name, reason in self.plan.broken.items()
        ]
        return (*verdicts, *broken)

    def _guard_verdict(self, screen: Screen) -> GuardVerdict:
        best = self._best.get(screen.name)
        return GuardVerdict(
            guard=screen.name,
            concept=screen.concept,
            method=screen.method,
            score=round(best.score, 6) if best else None,
            threshold=screen.threshold,
            fired=best.fired if best else False,
            action=best.action if best else "none",
            place=best.place if best else None,
            error=self._error,
            findings=tuple(
                Finding(kind=kind, confidence=confidence, country=country)
                for (kind, country), confidence in (best.found.items() if best else ())
            ),
        )


def blocks(acting: Sequence[ScreenedText]) -> bool:
    """Whether the results that `Findings.add` returns end the request."""
    return bool(acting) and acting[0].screen.action == "block"


def redactions(acting: Iterable[ScreenedText]) -> list[Span]:
    """The spans to be redacted, in order, overlapping ones merged."""
    return merge_spans(
        span for result in acting if result.screen.action == "redact" for span in result.spans
    )


def merge_spans(spans: Iterable[Span]) -> list[Span]:
    """Spans in order, overlapping ones merged under the label of the first."""
    merged: list[Span] = []
    for span in sorted(spans, key=lambda span: (span.start, -span.end)):
        if merged and span.start < merged[-1].end:
            last = merged.pop()
            merged.append(replace(last, end=max(last.end, span.end)))
        else:
            merged.append(span)
    return merged
