"""The state of one text row: its tokens as text, stop strings, and the events for its client."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

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
from server.services.token_gates import TokenGates
from steering.engines.transformers.rewinding import Back, HeldAnswer
from steering.engines.transformers.row_tokens import RowToken

if TYPE_CHECKING:
    from steering.engines.transformers.sampling.grammars import Grammar


class TokenText:
    """The text of a growing token sequence, up to a stop string.

    Text that may be the start of a stop string is buffered. `tokenizer` is a fast one of
    transformers, whose special tokens are left out, except those of `shown`, by id.
    """

    def __init__(
        self, tokenizer: Any, stop: tuple[str, ...], shown: Mapping[int, str] | None = None
    ) -> None:
        self.tokenizer = tokenizer
        self._stop = stop
        self._shown = shown or {}
        self._decoder = DecodeStream(skip_special_tokens=True)
        self._buffer = ""

    def again(self, tokens: Iterable[int]) -> TokenText:
        """The text of the sequence `tokens`, under the same stop strings."""
        text = TokenText(self.tokenizer, self._stop, self._shown)
        for token in tokens:
            text.push(token)
        return text

    def push(self, token: int) -> tuple[str, str | None]:
        """Add a token; returns new text that is safe to send, and the stop string that follows."""
        self._buffer += self._text_of(token)
        found = ((self._buffer.find(stop), stop) for stop in self._stop)
        if matches := [(at, stop) for at, stop in found if at >= 0]:
            first, stop = min(matches)
            return self._buffer[:first], stop
        keep = max((self._partial_match(stop) for stop in self._stop), default=0)
        cut = len(self._buffer) - keep
        text, self._buffer = self._buffer[:cut], self._buffer[cut:]
        return text, None

    def _text_of(self, token: int) -> str:
        if (name := self._shown.get(token)) is not None:
            # what the decoder has held back of a character is never completed behind such a token
            self._decoder = DecodeStream(skip_special_tokens=True)
            return name
        return self._decoder.step(self.tokenizer.backend_tokenizer, token) or ""

    def rest(self) -> str:
        """The buffered text when the row ends."""
        return self._buffer

    def _partial_match(self, stop: str) -> int:
        """Length of the longest prefix of `stop` that the text ends with."""
        sizes = range(min(len(stop) - 1, len(self._buffer)), 0, -1)
        return next((size for size in sizes if self._buffer.endswith(stop[:size])), 0)


class TextRow(BatchRow):
    """The state of one request for text."""

    request: TextRowRequest
    plan: LanguagePlan

    def __init__(
        self,
        request: TextRowRequest,
        plan: LanguagePlan,
        loop: asyncio.AbstractEventLoop,
        text: TokenText,
        cancel: Callable[[TextRow], None],
        *,
        end_tokens: frozenset[int],
        grammar: Grammar | None = None,
        held: HeldAnswer | None = None,
    ) -> None:
        """`end_tokens` are those of the model, `grammar` that of the request's constraint; `held`
        is there for an answer that may go back, or end with a message."""
        super().__init__(loop)
        options = request.sampling.options
        self.end_tokens = frozenset(options.stop_token_ids) | (
            frozenset() if options.ignore_eos else end_tokens
        )
        """The tokens that end this row; their text is not sent."""
        self.grammar = grammar
        self.request, self.plan, self.text = request, plan, text
        self.started = False
        """Whether a token was generated, so that no guard has blocked the prompt."""
        self.generated = 0
        """Number of tokens."""
        self.reason: FinishReason | None = None
        self.stop: str | None = None
        """The stop string that has ended the row."""
        # A guard reads a generated token in the forward after the one that generated it. Where it
        # may block then, each token waits for the next one: the token it fires on is not sent.
        blocking = [guard for guard in plan.guards if plan.action_of(guard) == "block"]
        self.lags = any(guard.recheck is not None for guard in blocking)
        self._delayed: RowToken | None = None
        self.held = held
        # stop strings end a row at once, also those in tokens that are held back
        self._ahead = text.again(()) if held is not None and request.sampling.stop else None
        self.is_stuck = False
        """Whether the answer has ended since steering did not lead away from the topic."""
        # an answer of a given form is sent whole, or not at all, where a guard may cut it
        self._whole: list[TextDelta] | None = None
        if (self.lags or plan.says_later) and request.sampling.constraint is not None:
            self._whole = []
        self.gates = TokenGates(request.prompt, text.tokenizer)
        self.events = _Events(self, cancel)

    @property
    def over(self) -> bool:
        """Whether the last token has been generated, or an error ends the row."""
        return self.reason is not None or self.error is not None

    def push(self, token: RowToken) -> None:
        """Send the text of a generated token, and end the row where it is the last one."""
        self.started = True
        ends = token.token in self.end_tokens
        delayed, self._delayed = self._delayed, None
        if delayed is not None:
            self._send_token(delayed, ends=False)
        if self.reason is not None:
            return
        if self.held is not None:
            self._hold(self.held, token, ends=ends)
        elif self.lags and not ends:
            self._delayed = token
        else:
            self._send_token(token, ends=ends)

    def end(self) -> None:
        """End the answer with what has been sent of it; called from the event loop."""
        if self.reason is None:
            self.reason = "stop"

    def go_back(self, held: HeldAnswer, token: RowToken) -> Back:
        """A guard has begun to act on the token before `token`: how the row goes back. Where
        steering does not lead away from the topic, its answer ends with the policy's message."""
        back = held.go_back(token)
        self.gates.go_back(len(back.withdrawn))
        if back.stuck:
            self.is_stuck = True
            self._say()
        elif self._ahead is not None:
            self._ahead = self.text.again(held.tokens)
        return back

    def say(self, token: RowToken) -> None:
        """End the answer with the policy's message: a guard has fired on the token before `token`,
        or on the prompt."""
        if self.request.sampling.constraint is not None:
            # the message is not of the form that was asked for: the API says so
            self.started, self.reason = True, "content_filter"
            return
        if self.held is not None and self.held:
            self.held.go_back(token)
        self._say()

    def _say(self) -> None:
        """Send the message in place of what has been withdrawn."""
        joint = ""
        if self.held is not None:
            joint = self.held.joint
            self._send_settled(self.held.rest())
        if self.reason is None:  # else a stop string came before
            self.reason = "stop"
            if rest := self.text.rest():
                self.send(TextDelta(rest))
            self.send(TextDelta(f"{joint}{self.plan.message}", said=True))

    def _hold(self, held: HeldAnswer, token: RowToken, *, ends: bool) -> None:
        """As `push`, for an answer of which tokens may be withdrawn."""
        # the last token that fits is read too, hence the one behind it generated
        if ends or len(held) == self.request.sampling.max_tokens:
            self._send_settled(held.rest())
        else:
            self._send_settled(held.push(token))
            stops = self._ahead is not None and self._ahead.push(token.token)[1] is not None
            if stops or held.repeats:
                self._send_settled(held.rest())
                self.reason = self.reason or "stop"
        if ends and self.reason is None:
            self._send_token(token, ends=True)

    def _send_settled(self, tokens: Sequence[RowToken]) -> None:
        for token in tokens:
            if self.reason is None:
                self._send_token(token, ends=False)

    def finish(self, verdict: Verdict) -> None:
        """Send the last event, with the verdict or with the error that ended the row."""
        if self.error is not None:
            self.send_error(self.error, verdict)
        elif self.reason == "content_filter" and not self.started:
            self.send(ContentBlocked("a guard of this policy blocks the prompt", verdict=verdict))
        else:
            prompt_tokens, stop = len(self.request.prompt), self.stop
            reason = self.reason or "stop"
            if self._whole and reason != "content_filter":
                self.send(_joined(self._whole))
            self.send(FinishedText(reason, prompt_tokens, self.generated, verdict, stop))

    def _send_token(self, token: RowToken, *, ends: bool) -> None:
        self.generated += 1
        if ends:
            self.reason, text = "stop", self.text.rest()
        else:
            text, self.stop = self.text.push(token.token)
            if self.stop is not None:
                self.reason = "stop"
            elif self.generated >= self.request.sampling.max_tokens:
                self.reason, text = "length", text + self.text.rest()
        wanted = token.logprob is not None and not ends
        tokens = (self._logprob(token),) if wanted else ()
        gates = self.gates.take(self.generated)
        if text or tokens or gates:
            delta = TextDelta(text, tokens, gates=gates)
            if self._whole is None:
                self.send(delta)
            else:
                self._whole.append(delta)

    def _logprob(self, token: RowToken) -> TokenLogprob:
        def text(token_id: int) -> str:
            return str(self.text.tokenizer.decode([token_id]))

        top = tuple((token_id, text(token_id), logprob) for token_id, logprob in token.top)
        return TokenLogprob(token.token, text(token.token), token.logprob or 0.0, top)


def _joined(deltas: list[TextDelta]) -> TextDelta:
    text = "".join(delta.text for delta in deltas)
    return TextDelta(
        text,
        tuple(token for delta in deltas for token in delta.tokens),
        gates=tuple(gate for delta in deltas for gate in delta.gates),
    )


class _Events:
    """The events of a row. No generator: closing one that has not started runs none of its code."""

    def __init__(self, row: TextRow, cancel: Callable[[TextRow], None]) -> None:
        self._row, self._cancel, self._over = row, cancel, False

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

    def end(self) -> None:
        self._row.end()

    async def aclose(self) -> None:
        if not self._over:
            self._over = True
            self._cancel(self._row)
