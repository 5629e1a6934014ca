"""One request and its answer behind the screens of a policy: plain ASGI around an app inside."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import fields
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from guard.errors import GuardError, GuardFailed
from guard.plans.screens import TextPlan, TextScreen
from guard.verdict import GuardVerdict, Outcome, Verdict, gravest
from server.errors import ClientGone, RequestTimeout
from server.observe.exchange import MODEL, UPSTREAM, Exchange
from server.screening.errors import UnscreenedContent
from server.screening.findings import Findings, ScreenedText
from server.screening.request import RequestScreening, refusal
from server.screening.response import ScreenedResponse
from server.screening.routes import Route
from server.screening.texts.screener import Screener
from server.wire.body import replayed
from server.wire.strict_json import encode_json

_PATIENCE_S = 5.0
"""How long the app inside may take to end an answer that is not wanted any more."""
_GUARD_FIELDS = {each.name for each in fields(GuardVerdict)}


class ScreenedExchange:
    """`body` is the request's, parsed; `raw` its bytes, which are sent on where nothing is changed
    in it. `receive` gives what comes behind the body: the client's hang-up."""

    def __init__(
        self,
        inner: ASGIApp,
        screener: Screener,
        plan: TextPlan,
        route: Route,
        exchange: Exchange,
        body: dict[str, Any],
        raw: bytes,
        *,
        altered: bool,
        rewritable: bool,
        model: str,
        max_response_bytes: int,
        timeout_s: float,
        own_errors: bool,
    ) -> None:
        self.inner, self.screener, self.plan, self.route = inner, screener, plan, route
        self.exchange, self.raw, self.altered, self.model = exchange, raw, altered, model
        self.findings = Findings(plan)
        self.screening = RequestScreening(plan, body, route.place, self.findings)
        self.refused = False
        """Whether the request was not let to the app inside, or its answer is not wanted."""
        self.inner_guards: tuple[GuardVerdict, ...] = ()
        self._limit, self._timeout_s, self._rewritable = max_response_bytes, timeout_s, rewritable
        self._own_errors = own_errors
        self._inner_outcome: Outcome = "pass"
        self._begun = time.perf_counter()
        self._answered = False

    async def run(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the request. Raises GuardError where nothing has been sent to the client."""
        gone = asyncio.create_task(_hung_up(receive))
        try:
            await self._run(scope, send, gone)
        except GuardFailed as error:
            self.findings.fail(error.message)
            raise
        finally:
            gone.cancel()
            with suppress(asyncio.CancelledError):
                await gone

    def verdict(self) -> Verdict:
        """What has happened to the request so far."""
        return Verdict(
            request_id=self.exchange.request_id,
            model=self.model,
            policy=self.plan.policy,
            outcome=gravest([self.findings.outcome, self._inner_outcome]),
            guards=(*self.inner_guards, *self.findings.guards()),
            elapsed_ms=round(1000 * (time.perf_counter() - self._begun), 3),
            unscreened=tuple(sorted(self.findings.unscreened)),
        )

    async def _run(self, scope: Scope, send: Send, gone: asyncio.Task[None]) -> None:
        self.refused = True
        self.plan.require_whole()
        if self.route.answer != "text" and not self.plan.passes(self.route.answer):
            raise UnscreenedContent(
                f"The policy {self.plan.policy!r} reads text, and the answer would be "
                f"{self.route.answer}: have the operator let that pass unscreened."
            )
        body = self.screening.body
        answer = ScreenedResponse(
            send,
            self.route,
            self.screening,
            self._read,
            self._told,
            self._head,
            lambda: refusal(self.route.place, self.verdict()),
            choices=_choices(body) if self.route.several else 1,
            limit=self._limit,
            own_errors=self._own_errors,
        )
        try:
            if self.plan.settings.race and not self.plan.changes:
                answer.gate.clear()
                inside = self._send_on(scope, answer, gone)
                try:
                    await self._screened(gone)
                except BaseException:
                    answer.cut.set()
                    answer.gate.set()
                    with suppress(Exception):  # what it says of that is not the answer
                        await _ended(inside, _PATIENCE_S)
                    raise
                answer.gate.set()
            else:
                await self._screened(gone)
                inside = self._send_on(scope, answer, gone)
            await self._finished(inside, answer)
        finally:
            answer.close()

    async def _screened(self, gone: asyncio.Task[None]) -> None:
        """Read the request. Raises what its screens make of it, and ClientGone."""
        reading = asyncio.create_task(self.screening.run(self._read))
        try:
            await asyncio.wait(
                (reading, gone), timeout=self._timeout_s, return_when=asyncio.FIRST_COMPLETED
            )
            if reading.done():
                if not reading.result():
                    raise refusal(self.route.place, self.verdict())
                if self.screening.changed and not self._rewritable:
                    raise UnscreenedContent(
                        f"The policy {self.plan.policy!r} changes this request, and a form cannot "
                        "be changed: send JSON."
                    )
                self.refused = False
                return
            if gone.done():
                raise ClientGone("The client hung up before its request was screened.")
            raise RequestTimeout("Screening the request took longer than this server allows.")
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)

    def _send_on(
        self, scope: Scope, answer: ScreenedResponse, gone: asyncio.Task[None]
    ) -> asyncio.Task[None]:
        body = self.raw
        if self.screening.changed or self.altered:
            body = encode_json(self.screening.body)
        scope = dict(scope) | {"headers": list(scope["headers"])}
        headers = MutableHeaders(scope=scope)
        headers["content-length"] = str(len(body))
        # an answer that was packed could not be read
        headers["accept-encoding"] = "identity"
        if "transfer-encoding" in headers:
            del headers["transfer-encoding"]
        if self.screening.upstream is not None:
            scope[UPSTREAM] = self.screening.upstream
        if isinstance(model := self.screening.body.get("model"), str):
            scope[MODEL] = model

        async def over() -> Message:
            cut = asyncio.create_task(answer.cut.wait())
            try:
                await asyncio.wait((cut, gone), return_when=asyncio.FIRST_COMPLETED)
            finally:
                cut.cancel()
            return {"type": "http.disconnect"}

        return asyncio.ensure_future(self.inner(scope, replayed(body, over), answer.send))

    async def _finished(self, inside: asyncio.Task[None], answer: ScreenedResponse) -> None:
        cut = asyncio.create_task(answer.cut.wait())
        try:
            await asyncio.wait((inside, cut), return_when=asyncio.FIRST_COMPLETED)
            await _ended(inside, patience_s=_PATIENCE_S if answer.cut.is_set() else None)
        except GuardError as error:
            if not answer.underway and answer.error is None:
                raise
            if not isinstance(error, ClientGone):
                self._inner_outcome = "error"
            await answer.abort(error)
        finally:
            cut.cancel()
            inside.cancel()
        if answer.error is not None:
            raise answer.error

    async def _read(
        self, texts: Sequence[str], screens: Sequence[TextScreen], /, tail: int | None = None
    ) -> Sequence[Sequence[ScreenedText]]:
        try:
            return await self.screener.read(texts, screens, tail)
        except GuardFailed as error:
            if self.plan.on_error == "closed":
                raise
            self.findings.fail(error.message)
        with suppress(GuardFailed):  # patterns need no encoder
            return await self.screener.read(texts, [each for each in screens if each.head is None])
        return [[] for _ in texts]

    def _told(self, inner: dict[str, Any] | None) -> dict[str, Any]:
        """The `guard` object: what the app inside says of the request, and the screens."""
        told = inner.get("guards") if isinstance(inner, dict) else None
        if isinstance(inner, dict) and isinstance(told, list):
            self._inner_outcome = gravest([self._inner_outcome, *_outcome(inner.get("outcome"))])
            self.inner_guards = tuple(guard for each in told for guard in _guard(each))
        self._answered = True
        return self.verdict().as_dict()

    def _head(self) -> None:
        if self._answered:
            self.exchange.outcome = self.verdict().outcome


def _choices(body: dict[str, Any]) -> int:
    """How many answers a request asks for."""
    count, prompts = body.get("n"), body.get("prompt")
    listed = isinstance(prompts, list) and all(isinstance(each, str | list) for each in prompts)
    each = count if isinstance(count, int) and count > 0 else 1
    return each * (len(prompts) if listed and isinstance(prompts, list) and prompts else 1)


async def _ended(task: asyncio.Task[None], patience_s: float | None = None) -> None:
    """Wait for the app inside; one that does not see that nobody listens is cancelled."""
    done, _ = await asyncio.wait((task,), timeout=patience_s)
    if not done:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
    elif not task.cancelled():
        task.result()


async def _hung_up(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _outcome(value: Any) -> list[Outcome]:
    try:
        return [gravest([value])]
    except ValueError:
        return []


def _guard(value: Any) -> list[GuardVerdict]:
    if not isinstance(value, dict) or not _GUARD_FIELDS.issuperset(value):
        return []
    try:
        return [GuardVerdict(**value)]
    except TypeError:
        return []
