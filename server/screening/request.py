"""Screening of a request before it is sent on: its texts are read, and the policy is applied."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from guard.config.policy_schema import Place
from guard.errors import ContentBlocked
from guard.plans.screens import TextPlan
from guard.verdict import Verdict
from server.errors import ImageBlocked, InvalidJSON
from server.screening.bodies.texts import JsonText, JsonTexts, texts_of
from server.screening.errors import UnscreenedContent
from server.screening.findings import Findings, ScreenedText, TextReader, blocks, redactions
from server.screening.images.reading import ImageReader, screen_images, unread
from server.screening.texts.joins import conversation, read_crossing, read_together
from server.screening.texts.redaction import Placeholders
from server.screening.texts.rewriting import rewrite
from server.wire.long_work import by_turns, run_by_size
from server.wire.strict_json import NestedTooDeeply

_EARLIER = ("previous_response_id", "conversation")
"""Fields that bring turns into a request which the upstream has kept."""
VLLM_XARGS, POLICY_XARG = "vllm_xargs", "guard_policy"
"""Where a vLLM with this project's plugin finds the policy of a request."""


class RequestReader(TextReader, ImageReader, Protocol):
    """Runs the screens on a request."""


@dataclass
class RequestScreening:
    """One request under one plan.

    `body`, of `size` bytes, is rewritten in place. `address` has the texts of the URL, which cannot
    be rewritten. `placeholders` stand for the texts that are redacted in it. `own_app`: this server
    answers, and knows its own models' names.
    """

    plan: TextPlan
    body: dict[str, Any]
    default_place: Place
    findings: Findings
    own_app: bool = False
    address: Sequence[str] = ()
    placeholders: Placeholders = field(default_factory=lambda: Placeholders(()))
    size: int = 0
    changed: bool = False
    upstream: str | None = None
    delegated: bool = False
    """Whether a screen has fired whose policy the upstream's plugin must apply."""

    async def run(self, reader: RequestReader) -> bool:
        """Screen the request; return whether it may be sent on. A plan without screens reads none.

        Raises UnscreenedContent, InvalidJSON, what `screen_images` does and what `reader` raises.
        """
        if not self.plan.active:
            return True
        try:
            texts = await run_by_size(self.size, texts_of, self.body, self.default_place)
        except NestedTooDeeply as error:
            raise InvalidJSON(f"The body cannot be screened: {error}.") from None
        if self.own_app:
            texts.pieces = [piece for piece in texts.pieces if piece.path != "model"]
        else:
            place = self.default_place
            texts.pieces += [JsonText(None, "", t, place, "url", 0, "key") for t in self.address]
        self._require_screenable(texts)
        if await screen_images(texts, self.findings, reader):
            return False
        is_continued = any(self.body.get(name) for name in _EARLIER)
        self.placeholders = Placeholders(
            (piece.text for piece in texts.pieces), is_continued=is_continued
        )
        # a redaction needs the string in which it is; strings that belong together are then read
        # as one text
        screens_by_places = self.plan.by_places
        pieces = [
            piece
            for piece in texts.pieces
            if any(piece.place in places for places in screens_by_places)
        ]
        results = await reader.read([piece.reading for piece in pieces], self.plan.lists)
        blocked = [
            self._apply([r for r in piece_results if piece.place in r.screen.places], piece)
            async for piece, piece_results in by_turns(zip(pieces, results, strict=True))
        ]
        self.placeholders.seal()
        if any(blocked):
            return False
        for places, screens in screens_by_places.items():
            heads = [screen for screen in screens if screen.head is not None]
            lists = [screen for screen in screens if screen.head is None]
            groups = self._groups(texts, places) if heads else []
            joined = await read_together(reader, groups, heads)
            joined += await read_crossing(reader, texts.at(places), lists)
            if "user" in places and self.plan.settings.turns > 1:
                turns = conversation(texts, self.plan.settings.turns, places)
                joined += await read_crossing(reader, turns, lists)
            blocked += [
                self._apply(found, first, is_writable=False)
                async for first, found in by_turns(joined)
            ]
        texts.write_back()
        return not any(blocked)

    def _require_screenable(self, texts: JsonTexts) -> None:
        """Raise UnscreenedContent for content that is not text, unless the policy lets it pass."""
        for kind, member in sorted(unread(texts, self.plan).items()):
            if not self.plan.passes(kind):
                raise UnscreenedContent(
                    f"The policy {self.plan.policy!r} reads text, and this request brings {kind}: "
                    "leave them out, or have the operator let them pass unscreened.",
                    param=member or None,
                )
            self.findings.unscreened.add(kind)

    def _groups(self, texts: JsonTexts, places: Container[Place]) -> list[list[JsonText]]:
        """Texts at `places` that belong together, and the last turns of the conversation."""
        groups = [[piece for piece in unit if piece.place in places] for unit in texts.units()]
        if self.plan.settings.turns > 1 and "user" in places:
            turns = conversation(texts, self.plan.settings.turns, places)
            groups += [turns] if len({piece.unit for piece in turns}) > 1 else []
        return [group for group in groups if group]

    def _apply(
        self, results: Sequence[ScreenedText], piece: JsonText, *, is_writable: bool = True
    ) -> bool:
        """Apply the actions of the screens that fired; return whether they block the request."""
        acting = self.findings.add(results, piece.path)
        if blocks(acting):
            return True
        if redactions(acting):
            if piece.is_key or not is_writable:
                return True  # neither a name nor a match across several strings can be redacted
            self.changed = rewrite(piece, acting, self.placeholders) or self.changed
        settings = self.plan.settings
        for result in acting:
            if result.screen.action == "route":
                self.upstream = settings.upstream
                if settings.model is not None:
                    self.body["model"] = settings.model
                self.changed = True
            if result.screen.action == "policy" and settings.upstream_policy is not None:
                set_upstream_policy(self.body, settings.upstream_policy)
                self.changed = self.delegated = True
        return False


def set_upstream_policy(body: dict[str, Any], policy: str | None) -> None:
    """Set the policy that a vLLM with our plugin applies; None removes the client's choice."""
    xargs = body.get(VLLM_XARGS)
    xargs = dict(xargs) if isinstance(xargs, dict) else {}
    xargs.pop(POLICY_XARG, None)
    if policy is not None:
        xargs[POLICY_XARG] = policy
    if xargs:
        body[VLLM_XARGS] = xargs
    else:
        body.pop(VLLM_XARGS, None)


def refusal(place: Place, verdict: Verdict) -> ContentBlocked:
    """The error for the client of a blocked request, or of an answer that cannot end as one."""
    blocking = [guard.guard for guard in verdict.guards if guard.action in {"block", "redact"}]
    fired = ", ".join(blocking)
    kind = ImageBlocked if place == "images" else ContentBlocked
    return kind(
        f"The policy {verdict.policy!r} does not let this request pass ({fired}).", verdict=verdict
    )
