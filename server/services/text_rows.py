"""One row of a running batch: its text so far, and the events that its client reads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from tokenizers.decoders import DecodeStream

from guard.errors import ContentBlocked, GuardError
from guard.plans.language import LanguagePlan
from guard.verdict import Verdict
from server.services.interface import (
    Event,
    FinishedText,
    FinishReason,
    TextDelta,
    TextRowRequest,
    TokenLogprob,
)
from server.services.loop import BatchRow
from steering.engines.transformers.engine import RowToken


class TokenText:
    """Text of a growing token sequence, held back where it may be the start of a stop string.

    `tokenizer` is a fast one of transformers.
    """

    def __init__(self, tokenizer: Any, stop: tuple[str, ...]) -> None:
        self.tokenizer = tokenizer
        self._stop = stop
        self._decoder = DecodeStream(skip_special_tokens=True)
        self._held = ""

    def push(self, token: int) -> tuple[str, bool]:
        """New text that is safe to send, and whether a stop string was met."""
        self._held += self._decoder.step(self.tokenizer.backend_tokenizer, token) or ""
        met = [at for at in (self._held.find(stop) for stop in self._stop) if at >= 0]
        if met:
            return self._held[: min(met)], True
        keep = max((self._open(stop) for stop in self._stop), default=0)
        cut = len(self._held) - keep
        sent, self._held = self._held[:cut], self._held[cut:]
        return sent, False

    def rest(self) -> str:
        """What is still held back when the row ends."""
        return self._held

    def _open(self, stop: str) -> int:
        """Length of the longest start of `stop` that the text ends with."""
        sizes = range(min(len(stop) - 1, len(self._held)), 0, -1)
        return next((size for size in sizes if self._held.endswith(stop[:size])), 0)


class TextRow(BatchRow):
    """A request for text on its way."""

    request: TextRowRequest
    plan: LanguagePlan

    def __init__(
        self,
        request: TextRowRequest,
        plan: LanguagePlan,
        loop: asyncio.AbstractEventLoop,
        text: TokenText,
        hang_up: Callable[[TextRow], None],
    ) -> None:
        super().__init__(loop)
        self.request, self.plan, self.text = request, plan, text
        self.begun = False
        """Whether the prompt was let through."""
        self.generated = 0
        self.reason: FinishReason | None = None
        # A guard looks at a generated token in the forward after the one that made it: where it
        # may block there, each token waits for the next, so that the one it fires on is not sent.
        self.lags = plan.action == "block" and any(
            guard.recheck is not None for guard in plan.guards
        )
        self._late: RowToken | None = None
        self.events = _Events(self, hang_up)

    @property
    def over(self) -> bool:
        """Whether its last token has been generated."""
        return self.reason is not None or self.error is not None

    def push(self, token: RowToken, *, ends: bool) -> None:
        """Take a generated token: send its text, and end the row where it is the last."""
        self.begun = True
        late, self._late = self._late, None
        if late is not None:
            self._say(late, ends=False)
        if self.reason is not None:
            return
        if self.lags and not ends:
            self._late = token
        else:
            self._say(token, ends=ends)

    def finish(self, verdict: Verdict) -> None:
        """Send the last event: the verdict, or the error that ended the row."""
        if self.error is not None:
            self.send_error(self.error, verdict)
        elif self.reason == "content_filter" and not self.begun:
            self.send(ContentBlocked("a guard of this policy blocks the prompt", verdict=verdict))
        else:
            prompt = len(self.request.prompt)
            self.send(FinishedText(self.reason or "stop", prompt, self.generated, verdict))

    def _say(self, token: RowToken, *, ends: bool) -> None:
        self.generated += 1
        if ends:
            self.reason, text = "stop", self.text.rest()
        else:
            text, stopped = self.text.push(token.token)
            if stopped:
                self.reason = "stop"
            elif self.generated >= self.request.sampling.max_tokens:
                self.reason, text = "length", text + self.text.rest()
        wanted = token.logprob is not None and not ends
        tokens = (self._logprob(token),) if wanted else ()
        if text or tokens:
            self.send(TextDelta(text, tokens))

    def _logprob(self, token: RowToken) -> TokenLogprob:
        def text(ids: int) -> str:
            return str(self.text.tokenizer.decode([ids]))

        top = tuple((ids, text(ids), value) for ids, value in token.top)
        return TokenLogprob(token.token, text(token.token), token.logprob or 0.0, top)


class _Events:
    """A row's events. A class, since closing an unstarted async generator runs none of it."""

    def __init__(self, row: TextRow, hang_up: Callable[[TextRow], None]) -> None:
        self._row, self._hang_up, self._over = row, hang_up, False

    def __aiter__(self) -> _Events:
        return self

    async def __anext__(self) -> Event:
        if self._over:
            raise StopAsyncIteration
        event: Event | GuardError = await self._row.next_event()
        self._over = not isinstance(event, TextDelta)
        if isinstance(event, GuardError):
            raise event
        return event

    async def aclose(self) -> None:
        if not self._over:
            self._over = True
            self._hang_up(self._row)
