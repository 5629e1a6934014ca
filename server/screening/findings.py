"""What the screens of one request have found, and the verdict that it makes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from guard.plans.screens import TextPlan, TextScreen
from guard.verdict import OUTCOMES, GuardVerdict, Outcome, gravest
from server.screening.streams.hold_back import Span


@dataclass(frozen=True, slots=True)
class ScreenedText:
    """One screen on one text: patterns score 1 where they match, and say where."""

    screen: TextScreen
    score: float
    spans: tuple[Span, ...] = ()

    @property
    def fired(self) -> bool:
        """A classifier fires above its threshold, as it was calibrated, patterns by matching."""
        if self.screen.head is None:
            return bool(self.spans)
        return self.score > self.screen.threshold


@dataclass(slots=True)
class _Best:
    score: float
    place: str
    fired: bool = False
    action: str = "none"


@dataclass(slots=True)
class Findings:
    """Collects what is seen of one request and of its answer."""

    plan: TextPlan
    unscreened: set[str] = field(default_factory=set)
    _best: dict[str, _Best] = field(default_factory=dict)
    _outcomes: set[Outcome] = field(default_factory=set)
    _error: str | None = None

    def take(
        self, seen: Iterable[ScreenedText], place: str, *, answer: bool = False
    ) -> list[ScreenedText]:
        """Note them; those that have fired and do something, with the first of them to block.

        In an answer nothing can be routed any more: such a screen flags.
        """
        acting = []
        for each in seen:
            screen = each.screen
            best = self._best.get(screen.name)
            if best is None or (each.fired, each.score) > (best.fired, best.score):
                kept = best.action if best else "none"
                best = self._best[screen.name] = _Best(each.score, place, each.fired, kept)
            if each.fired:
                late = answer and screen.action in {"route", "policy"}
                best.action = "flag" if late else screen.action
                self._outcomes.add(OUTCOMES["flag" if late else screen.action])
                if not late and screen.action not in {"flag", "observe"}:
                    acting.append(each)
        return sorted(acting, key=lambda each: each.screen.action != "block")

    def fail(self, why: str) -> None:
        """The screens could not be run, and the policy lets that pass."""
        self._error = why

    @property
    def outcome(self) -> Outcome:
        """What has become of the request so far."""
        failed = self._error or self.plan.broken
        if failed and "blocked" not in self._outcomes:
            return "error"
        return gravest(self._outcomes)

    def guards(self) -> tuple[GuardVerdict, ...]:
        """One verdict a screen of the policy."""
        found = [self._told(screen) for screen in self.plan.screens]
        broken = [
            GuardVerdict(name, "", "", None, 0.0, False, "none", error=why)
            for name, why in self.plan.broken.items()
        ]
        return (*found, *broken)

    def _told(self, screen: TextScreen) -> GuardVerdict:
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
        )


def blocks(acting: Sequence[ScreenedText]) -> bool:
    """Whether what `Findings.take` gives ends the request."""
    return bool(acting) and acting[0].screen.action == "block"


def redactions(acting: Iterable[ScreenedText]) -> list[Span]:
    """The spans to be cut out, in order, those that overlap as one."""
    return apart(span for each in acting if each.screen.action == "redact" for span in each.spans)


def apart(spans: Iterable[Span]) -> list[Span]:
    """Spans in order, those that overlap as one."""
    joined: list[Span] = []
    for span in sorted(spans, key=lambda span: (span.start, -span.end)):
        if joined and span.start < joined[-1].end:
            last = joined.pop()
            joined.append(Span(last.start, max(last.end, span.end), last.label))
        else:
            joined.append(span)
    return joined
