"""A request and its response behind the screens of a policy: plain ASGI around another app."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any
from urllib.parse import unquote_plus

from starlette.datastructures import MutableHeaders
from starlette.types import Message, Receive, Scope, Send

from guard.errors import ContentBlocked, GuardError, GuardFailed
from guard.plans.screens import TextPlan, TextScreen
from guard.verdict import GuardVerdict, Outcome, Verdict, gravest
from server.errors import ClientGone, RequestTimeout
from server.observe.exchange import DELEGATED, MODEL, UPSTREAM, Exchange
from server.screening.answers.app_verdicts import TakenVerdicts
from server.screening.context import ScreeningContext
from server.screening.errors import UnscreenedContent
from server.screening.findings import Findings, ScreenedText
from server.screening.images.screener import ImageReading, WantedImage
from server.screening.kept import KeptBody
from server.screening.request import RequestScreening, refusal
from server.screening.response import ScreenedResponse
from server.screening.routes import Route
from server.screening.texts.turns import Caller
from server.wire.body import RequestBody, hand_over

_PATIENCE_S = 5.0
"""How long the app may take to end a response that is no longer wanted."""


class ScreenedExchange:
    """One request under one plan, its response, and the verdict on both.

    `altered`: `body.value` no longer is what `body.raw` spells. A form cannot be rewritten.
    """

    def __init__(
        self,
        context: ScreeningContext,
        plan: TextPlan,
        route: Route,
        exchange: Exchange,
        body: RequestBody,
        *,
        model: str,
        altered: bool = False,
        caller: Caller = Caller(),  # noqa: B008  # frozen
    ) -> None:
        self.context, self.plan, self.route = context, plan, route
        self.exchange, self.model, self.caller = exchange, model, caller
        self.findings = Findings(plan)
        self.screening = RequestScreening(
            plan,
            body.value,
            route.default_place,
            self.findings,
            own_app=context.own_app,
            size=len(body.raw),
        )
        self.refused = False
        """Whether the request was not let through to the app, or its response is not wanted."""
        self._body, self._altered = body, altered
        self._app_guards: tuple[GuardVerdict, ...] = ()
        self._app_outcome: Outcome = "pass"
        self._has_verdict = self._app_has_verdict = False
        self._started = time.perf_counter()

    async def run(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the request. Raises GuardError where nothing has been sent to the client.

        `receive` is called for what follows the body, which has been read: the disconnect.
        """
        disconnect = asyncio.create_task(_disconnected(receive))
        try:
            await self._run(scope, send, disconnect)
        except GuardFailed as error:
            self.findings.fail(error.message)
            raise
        finally:
            disconnect.cancel()
            with suppress(asyncio.CancelledError):
                await disconnect

    def verdict(self) -> Verdict:
        """The verdict on the request and its response so far."""
        return Verdict(
            request_id=self.exchange.request_id,
            model=self.model,
            policy=self.plan.policy,
            outcome=gravest([self.findings.outcome, self._app_outcome]),
            guards=(*self._app_guards, *self.findings.guards()),
            elapsed_ms=round(1000 * (time.perf_counter() - self._started), 3),
            unscreened=tuple(sorted(self.findings.unscreened)),
        )

    async def read(
        self, texts: Sequence[str], screens: Sequence[TextScreen], tail: int | None = None
    ) -> Sequence[Sequence[ScreenedText]]:
        """`Screener.read`; where a model fails and the policy is open, what is read without it."""
        screener = self.context.screener
        if watching := [each for each in screens if each.name in self.plan.watching]:
            acting = [each for each in screens if each.name not in self.plan.watching]
            return await self._read_beside(texts, acting, watching, tail)
        with self.exchange.trace.stage("screens of text"):
            try:
                return await screener.read(texts, screens, tail, self.caller)
            except GuardFailed as error:
                if self.plan.on_error == "closed":
                    raise
                self.findings.fail(error.message)
            results: list[list[ScreenedText]] = [[] for _ in texts]
            for same in _by_reader(screens):
                with suppress(GuardFailed):
                    rows = await screener.read(texts, same, tail, self.caller)
                    for result, found in zip(results, rows, strict=True):
                        result += found
            return results

    async def _read_beside(
        self,
        texts: Sequence[str],
        acting: Sequence[TextScreen],
        watching: Sequence[TextScreen],
        tail: int | None,
    ) -> Sequence[Sequence[ScreenedText]]:
        """As `read`: no request may fail, or be read otherwise, for what only its shadow reads."""
        screener = self.context.screener
        has_heads = any(screen.head is not None for screen in watching)
        if has_heads and any(screen.head is not None and screen.first_stage for screen in acting):
            # together the encoder would read texts that these alone clear without it
            results = await self.read(texts, acting, tail)
            with suppress(GuardError), self.exchange.trace.stage("screens of text"):
                more = await screener.read(texts, watching, tail, self.caller)
                results = [[*own, *other] for own, other in zip(results, more, strict=True)]
            return results
        with suppress(GuardError), self.exchange.trace.stage("screens of text"):
            return await screener.read(texts, [*acting, *watching], tail, self.caller)
        return await self.read(texts, acting, tail)

    async def read_images(self, images: Sequence[WantedImage]) -> Sequence[ImageReading]:
        """`ImageScreener.read`; where that fails and the policy is open, each image has a fault."""
        screener = self.context.screener.images
        if screener is None:
            return [ImageReading(fault="Nothing reads images here.")] * len(images)
        began = time.perf_counter()
        try:
            with self.exchange.trace.stage("screens of images"):
                found = await screener.read(images, self.caller)
        except GuardFailed as error:
            if self.plan.on_error == "closed":
                raise
            return [ImageReading(fault=error.message)] * len(images)
        names = [screen.name for screen in self.plan.images]
        self.context.screener.timed(names, self.caller.tenant, time.perf_counter() - began)
        return found

    def take_verdicts(self, body: dict[str, Any]) -> TakenVerdicts:
        """Take the verdicts of the app out of a body or an event; they count into this one."""
        taken = TakenVerdicts(body)
        if taken:
            self._app_has_verdict = True
            self._app_outcome = gravest([self._app_outcome, taken.outcome])
            self._app_guards = taken.guards or self._app_guards
        return taken

    def put_back(self, verdicts: TakenVerdicts, body: dict[str, Any]) -> None:
        """Give the verdicts of single rows back, as far as the client is told."""
        verdicts.put_back(body, self.exchange.detail, self.findings.outcome)

    def guard_object(self) -> dict[str, Any] | None:
        """The `guard` object of the response; None where the client is not told."""
        if not self.plan.active and not self._app_has_verdict:
            return None
        self._has_verdict = True
        return self.exchange.guard(self.verdict()).get("guard")

    def set_headers(self) -> None:
        """Give the outcome to the `X-` headers, if there is a verdict before the first byte."""
        if self._has_verdict:
            self.exchange.outcome = self.verdict().outcome

    def refusal(self) -> ContentBlocked:
        """The error for a blocked request or response."""
        return refusal(self.route.default_place, self.verdict())

    async def _run(self, scope: Scope, send: Send, disconnect: asyncio.Task[None]) -> None:
        self.refused = True
        self.plan.require_whole()
        if self.plan.keep_text and self.context.kept is not None and not self._body.is_form:
            kept = KeptBody(self.plan.policy, self._body.raw, self.route.default_place)
            self.context.kept.put(self.caller.tenant, self.exchange.request_id, kept)
        kind = self.route.response_kind
        if self.plan.active and kind != "text" and not self.plan.passes(kind):
            raise UnscreenedContent(
                f"The policy {self.plan.policy!r} reads text, and the answer would be "
                f"{kind}: have the operator let that pass unscreened."
            )
        self.screening.address = _texts_of_url(scope)
        choices = choices_of(self.screening.body) if self.route.multiple_choices else 1
        if self.route.separate_messages:
            choices = sys.maxsize
        response = ScreenedResponse(send, self, choices)
        try:
            if self.plan.settings.race and not self.plan.changes:
                app = await self._race(scope, response, disconnect)
            else:
                await self._screen_request(disconnect)
                app = self._start_app(scope, response, disconnect)
            await self._finish(app, response)
        finally:
            response.close()

    async def _race(
        self, scope: Scope, response: ScreenedResponse, disconnect: asyncio.Task[None]
    ) -> asyncio.Task[None]:
        """Start the app while the request is screened; its response waits for the screens."""
        response.gate.clear()
        app = self._start_app(scope, response, disconnect)
        try:
            await self._screen_request(disconnect)
        except BaseException:
            response.stop()
            response.gate.set()
            with suppress(Exception):  # the screens' error is the answer, not the app's
                await _wait_for_app(app, _PATIENCE_S)
            raise
        response.gate.set()
        return app

    async def _screen_request(self, disconnect: asyncio.Task[None]) -> None:
        """Raises ContentBlocked, UnscreenedContent, RequestTimeout, ClientGone."""
        screening = asyncio.create_task(self.screening.run(self))
        try:
            await asyncio.wait(
                (screening, disconnect),
                timeout=self.context.timeout_s,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if screening.done():
                if not screening.result():
                    raise self.refusal()
                if self.screening.changed and self._body.is_form:
                    raise UnscreenedContent(
                        f"The policy {self.plan.policy!r} changes this request, and a form cannot "
                        "be changed: send JSON."
                    )
                self.refused = False
                return
            if disconnect.done():
                raise ClientGone("The client hung up before its request was screened.")
            raise RequestTimeout("Screening the request took longer than this server allows.")
        finally:
            screening.cancel()
            await asyncio.gather(screening, return_exceptions=True)

    def _start_app(
        self, scope: Scope, response: ScreenedResponse, disconnect: asyncio.Task[None]
    ) -> asyncio.Task[None]:
        body = self._body
        if self.screening.changed or self._altered:
            body = body.rewritten()

        async def until_unwanted() -> Message:
            await asyncio.wait((response.stopped, disconnect), return_when=asyncio.FIRST_COMPLETED)
            return {"type": "http.disconnect"}

        scope = dict(scope)
        receive = hand_over(body, scope, until_unwanted)
        # a compressed response could not be read
        MutableHeaders(scope=scope)["accept-encoding"] = "identity"
        if self.screening.upstream is not None:
            scope[UPSTREAM] = self.screening.upstream
        if isinstance(model := body.value.get("model"), str):
            scope[MODEL] = model
        if self.screening.delegated:
            scope[DELEGATED] = True
        return asyncio.ensure_future(self.context.app(scope, receive, response.send))

    async def _finish(self, app: asyncio.Task[None], response: ScreenedResponse) -> None:
        try:
            await asyncio.wait((app, response.stopped), return_when=asyncio.FIRST_COMPLETED)
            await _wait_for_app(app, _PATIENCE_S if response.stopped.done() else None)
        except GuardError as error:
            if not response.in_progress and response.error is None:
                raise
            if not isinstance(error, ClientGone) and not response.has_ended:
                self._app_outcome = "error"
            await response.abort(error)
        finally:
            app.cancel()
        if response.error is not None:
            raise response.error


def _by_reader(screens: Sequence[TextScreen]) -> Iterable[Sequence[TextScreen]]:
    """The screens that fail together: patterns, those of the encoder, those of models of names."""
    groups: dict[tuple[bool, bool], list[TextScreen]] = {}
    for screen in screens:
        groups.setdefault((screen.head is None, screen.entities is None), []).append(screen)
    return groups.values()


def _texts_of_url(scope: Scope) -> list[str]:
    """What a URL says, which is sent on as it is: its query, and the path of a request without a
    body, which may have an id in it."""
    texts = [unquote_plus(scope["query_string"].decode("latin-1"))]
    if scope["method"] != "POST":
        texts += scope["path"].split("/")
    return [text for text in texts if text]


def choices_of(body: dict[str, Any]) -> int:
    """The number of choices that a request asks for."""
    n, prompt = body.get("n"), body.get("prompt")
    per_prompt = n if isinstance(n, int) and n > 0 else 1
    is_batch = isinstance(prompt, list) and all(isinstance(item, str | list) for item in prompt)
    return per_prompt * (len(prompt) if is_batch and isinstance(prompt, list) and prompt else 1)


async def _wait_for_app(app: asyncio.Task[None], timeout_s: float | None = None) -> None:
    """Wait for the app to return; cancel it where it does not notice that it is not wanted."""
    done, _ = await asyncio.wait((app,), timeout=timeout_s)
    if not done:
        app.cancel()
        with suppress(asyncio.CancelledError):
            await app
    elif not app.cancelled():
        app.result()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
