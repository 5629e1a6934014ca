"""A request before it is sent on: its texts are read, and what the policy wants is done to it."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass, field
from typing import Any

from guard.config.schema import Place
from guard.errors import ContentBlocked
from guard.plans.screens import TextPlan
from guard.verdict import Verdict
from server.errors import ImageBlocked, InvalidJSON
from server.screening.errors import UnscreenedContent
from server.screening.findings import Findings, ScreenedText, blocks, redactions
from server.screening.streams.guard import TextReader
from server.screening.texts.json_texts import JsonText, JsonTexts, TooDeep, conversation, texts_of
from server.screening.texts.redaction import Placeholders

XARGS, XARG = "vllm_xargs", "guard_policy"
"""Where a vLLM with this project's plugin is told the policy of a request."""


@dataclass
class RequestScreening:
    """One request under one plan. `body` is what is sent on, `placeholders` what was cut out."""

    plan: TextPlan
    body: dict[str, Any]
    place: Place
    findings: Findings
    placeholders: Placeholders = field(default_factory=lambda: Placeholders(()))
    changed: bool = False
    upstream: str | None = None

    async def run(self, read: TextReader) -> bool:
        """Read the request; whether it may be sent.

        Raises UnscreenedContent, InvalidJSON and what `read` does.
        """
        try:
            texts = texts_of(self.body, self.place)
        except TooDeep as error:
            raise InvalidJSON(f"The body cannot be screened: {error}.") from None
        for what in sorted(texts.opaque):
            if not self.plan.passes(what):
                raise UnscreenedContent(
                    f"The policy {self.plan.policy!r} reads text, and this request brings {what}: "
                    "leave them out, or have the operator let them pass unscreened.",
                    param="messages",
                )
            self.findings.unscreened.add(what)
        self.placeholders = Placeholders(piece.text for piece in texts.pieces)
        # where something is to be cut out it must be known in which string; what belongs together
        # is then read as one text
        looks = self.plan.by_look
        pieces = [piece for piece in texts.pieces if any(piece.place in look for look in looks)]
        single = await read([piece.text for piece in pieces], self.plan.lists)
        ended = [
            self._act([each for each in seen if piece.place in each.screen.look], piece)
            for piece, seen in zip(pieces, single, strict=True)
        ]
        self.placeholders.seal()
        if any(ended):
            return False
        for look, screens in looks.items():
            groups = self._together(texts, look)
            joined = await read(list(map(joined_text, groups)), screens)
            ended += [
                self._act(seen, group[0], writable=False)
                for group, seen in zip(groups, joined, strict=True)
            ]
        return not any(ended)

    def _together(self, texts: JsonTexts, look: Container[Place]) -> list[list[JsonText]]:
        """What belongs together of what stands where somebody looks, and the last turns."""
        groups = [[piece for piece in unit if piece.place in look] for unit in texts.units()]
        if self.plan.settings.turns > 1 and "user" in look:
            turns = conversation(texts, self.plan.settings.turns, look)
            groups += [turns] if len({piece.unit for piece in turns}) > 1 else []
        return [group for group in groups if group]

    def _act(self, seen: Sequence[ScreenedText], piece: JsonText, *, writable: bool = True) -> bool:
        """Do what the policy wants where something was seen; True where that is to block."""
        acting = self.findings.take(seen, piece.path)
        if blocks(acting):
            return True
        if spans := redactions(acting):
            if piece.is_key or not writable:
                return True  # a name cannot be written over, nor what stands in several strings
            piece.write(self.placeholders.redacted(piece.text, spans))
            self.changed = True
        settings = self.plan.settings
        for each in acting:
            if each.screen.action == "route":
                self.upstream = settings.upstream
                if settings.model is not None:
                    self.body["model"] = settings.model
                self.changed = True
            if each.screen.action == "policy" and settings.upstream_policy is not None:
                hand_down(self.body, settings.upstream_policy)
                self.changed = True
        return False


def joined_text(group: Sequence[JsonText]) -> str:
    """What belongs together as one text."""
    return "\n".join(piece.text for piece in group)


def hand_down(body: dict[str, Any], policy: str | None) -> None:
    """Tell a vLLM with our plugin the policy of a request; None takes out what the client says."""
    given = body.get(XARGS)
    xargs = {k: v for k, v in given.items() if k != XARG} if isinstance(given, dict) else {}
    if policy is not None:
        xargs[XARG] = policy
    if xargs:
        body[XARGS] = xargs
    else:
        body.pop(XARGS, None)


def refusal(place: Place, verdict: Verdict) -> ContentBlocked:
    """What a client is told whose request is blocked."""
    ending = [guard.guard for guard in verdict.guards if guard.action in {"block", "redact"}]
    fired = ", ".join(ending)
    kind = ImageBlocked if place == "images" else ContentBlocked
    return kind(
        f"The policy {verdict.policy!r} does not let this request pass ({fired}).", verdict=verdict
    )
