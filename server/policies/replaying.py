"""Replays on a running server: from scores in the audit log, and from texts that were kept."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from guard.config.schema import Config
from guard.errors import GuardError, ReplayUnavailable
from guard.plans.screens import TextPlan, TextPlans, TextScreen
from guard.policies.decisions import Decisions
from guard.policies.readings import same_since
from guard.policies.recorded import Recorded, is_of_answer, last_recorded
from guard.policies.replay import Replay, replay
from guard.policies.store import VersionStore
from server.screening.findings import Findings, ScreenedText
from server.screening.images.screener import ImageReading, WantedImage
from server.screening.kept import KeptBody, KeptTexts
from server.screening.request import RequestScreening
from server.screening.texts.screener import Screener
from server.screening.texts.turns import Caller

READING_S = 6.0
"""How long texts are read again for one replay; the rest is decided from scores."""
_TURN = "replays"


@dataclass(frozen=True, slots=True)
class _Reader:
    """Runs screens on texts that were kept, in a turn of their own behind nobody's requests."""

    screener: Screener
    caller: Caller

    async def read(
        self, texts: Sequence[str], screens: Sequence[TextScreen], tail: int | None = None
    ) -> Sequence[Sequence[ScreenedText]]:
        return await self.screener.read(texts, screens, tail, self.caller)

    async def read_images(self, images: Sequence[WantedImage]) -> Sequence[ImageReading]:
        # their scores are in the audit log
        return [ImageReading(fault="Images are not kept.")] * len(images)


class Replays:
    """Decides the last requests again; all it is given is what requests have: `plans` gives the
    screens of now."""

    def __init__(
        self,
        plans: Callable[[], TextPlans | None],
        screener: Screener | None,
        kept: KeptTexts | None,
        *,
        own_app: bool = True,
    ) -> None:
        self._plans, self._screener = plans, screener
        self._kept, self._own_app = kept, own_app
        self._running = asyncio.Lock()

    async def run(
        self,
        policy: str,
        before: Config,
        after: Config,
        *,
        store: VersionStore,
        last: int,
        show: int,
        every_policy: bool = False,
    ) -> Replay:
        """Replay the last requests under `policy`, or all, with the settings that `after` gives
        it; `store` has the versions of policies. Raises ReplayUnavailable and DatabaseUnavailable.
        """
        started = time.perf_counter()
        async with self._running:  # one after the other: each reads a log and many texts
            requests = await self._recorded(before, last, None if every_policy else policy)
            earlier = await asyncio.to_thread(Decisions, before, self._plans())
            later = earlier.under(after)
            names = {request.policy for request in requests}
            since = await asyncio.to_thread(same_since, store, before.policies, names)
            from_text = await self._read_again(requests, later, policy)
            result = await asyncio.to_thread(
                partial(replay, show=show, since=since, from_text=from_text),
                requests,
                policy,
                earlier,
                later,
            )
        result.elapsed_ms = 1000 * (time.perf_counter() - started)
        return result

    async def scores(self, config: Config, last: int, policy: str) -> dict[str, Any]:
        """The JSON-ready scores of a policy's guards on its last requests, the newest first. Raises
        ReplayUnavailable."""
        async with self._running:
            found = await self._recorded(config, last, policy)
            guards = await asyncio.to_thread(_scores, found, config, self._plans(), policy)
        facts = {"object": "policy.scores", "policy": policy, "read": len(found)}
        return {**facts, "guards": guards}

    async def _recorded(self, config: Config, last: int, policy: str | None) -> list[Recorded]:
        """The last requests that were recorded, the newest first. Raises ReplayUnavailable."""
        path = config.server.audit_log
        if path is None:
            raise ReplayUnavailable(
                "Nothing is recorded that could be decided again: have the operator set audit_log "
                "in [server]."
            )
        return await asyncio.to_thread(last_recorded, path, last, policy)

    async def _read_again(
        self, requests: Sequence[Recorded], decisions: Decisions, policy: str
    ) -> Mapping[int, Recorded]:
        """The requests whose bodies were kept, with the scores that the screens of `policy` give
        them, by their index."""
        plan = decisions.screens_of(policy)
        kept, screener = self._kept, self._screener
        if kept is None or screener is None or plan is None or not plan.screens:
            return {}
        deadline = time.monotonic() + READING_S
        found = {}
        for index, request in enumerate(requests):
            body = kept.get(request.tenant, request.request_id, request.policy)
            if body is None or time.monotonic() > deadline:
                continue
            # one that cannot be read is decided from its scores
            with suppress(GuardError):
                reader = _Reader(screener, Caller(request.tenant, _TURN))
                found[index] = await self._reread(request, body, plan, reader)
        return found

    async def _reread(
        self, request: Recorded, body: KeptBody, plan: TextPlan, reader: _Reader
    ) -> Recorded:
        value = json.loads(body.raw)
        findings = Findings(plan)
        screening = RequestScreening(
            plan, value, body.default_place, findings, own_app=self._own_app, size=len(body.raw)
        )
        await screening.run(reader)
        texts = {screen.name for screen in plan.screens}
        again = {each.guard: each for each in findings.guards() if each.guard in texts}
        guards = dict(request.guards)
        for name, verdict in again.items():
            known = guards.get(name)
            facts = {"score": verdict.score, "place": verdict.place}
            guards[name] = _stronger(known, {**(known or {"fired": False}), **facts})
        return replace(request, guards=guards)


def _scores(
    found: Sequence[Recorded], config: Config, plans: TextPlans | None, policy: str
) -> list[dict[str, Any]]:
    thresholds = Decisions(config, plans).thresholds(policy)
    scores: dict[str, list[float]] = {name: [] for name in thresholds}
    for request in found:
        for name, known in request.guards.items():
            if isinstance(score := known.get("score"), int | float):
                scores.setdefault(name, []).append(score)
    return [
        {"guard": name, "threshold": thresholds.get(name), "scores": values}
        for name, values in scores.items()
    ]


def _stronger(known: Mapping[str, Any] | None, again: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a guard says of a request whose text was read again: what it said of the answer, which
    was not kept, where that is more."""
    if known is None or not is_of_answer(known.get("place")):
        return again
    return known if (known.get("score") or 0.0) >= (again["score"] or 0.0) else again
