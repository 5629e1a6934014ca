"""A text service whose rows follow a script, which the last line of the prompt names."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from guard.errors import ContentBlocked, GuardError, GuardFailed, ServiceStopped
from guard.verdict import GuardVerdict, Outcome, Verdict
from server.services.interface import (
    Event,
    FinishedText,
    FinishReason,
    LanguageModelInfo,
    TextDelta,
    TextRowRequest,
    TokenLogprob,
)
from server.services.tools.hermes import HERMES
from server.services.tools.offered import OfferedTools
from server.services.tools.template import ToolFormat
from steering.prompt import Prompt

Record = Callable[[TextRowRequest, Verdict], None]
SAID = "Ask the library."


@dataclass(frozen=True)
class Script:
    """The words of a row, the delay before each, and its end: `error`, or `reason`."""

    words: tuple[str, ...] = ("Hello", " there", "!")
    delay_s: float = 0.0
    reason: FinishReason = "stop"
    stop: str | None = None
    outcome: Outcome = "pass"
    score: float = 0.1
    error: Callable[[Verdict], Exception] | None = None
    said: str = ""
    """The policy's message, behind the words."""


SCRIPTS: Mapping[str, Script] = {
    "blocked": Script(
        words=(), outcome="blocked", error=lambda v: ContentBlocked("a guard fired", verdict=v)
    ),
    "failing": Script(
        words=(), outcome="error", error=lambda v: GuardFailed("NaN in a guard", verdict=v)
    ),
    "midway": Script(
        words=("Well", ","), outcome="error", error=lambda v: GuardFailed("NaN", verdict=v)
    ),
    "crash": Script(words=(), error=lambda v: RuntimeError("secret detail")),
    "crash midway": Script(words=("a",), error=lambda v: RuntimeError("secret detail")),
    "slow": Script(words=("a",) * 1000, delay_s=0.02),
    "stuck": Script(delay_s=3600),
    "cut": Script(reason="content_filter", outcome="steered", score=0.9),
    "nan": Script(score=math.nan),
    "silent": Script(words=()),
    "stopped": Script(stop="END"),
    "call": Script(
        words=(
            "I look. <tool", "_call>\n{", '"name": "weather", "argu', 'ments": {"city": "Pa',
            'ris"}}\n</tool_call>',
        )
    ),
    "two calls": Script(
        words=(
            '<tool_call>{"name": "weather", "arguments": {"city": "Paris"}}</tool_call>\n',
            '<tool_call>{"name": "get_time", "arguments": {}}</tool_call>',
        )
    ),
    "call, then more": Script(
        words=('<tool_call>{"name": "weather", "arguments": {}}</tool_call>', *" more" * 40),
        delay_s=0.01,
    ),
    "half a call": Script(
        words=("<tool_call>", '{"name": "weather", "arguments": {"city": "Pa'), reason="length"
    ),
    "arguments": Script(words=('{"city": ', '"Paris"}')),
    "unknown call": Script(words=('<tool_call>{"name": "delete_all", "arguments": {}}',)),
    "cut call": Script(
        words=(
            '<tool_call>{"name": "weather", "arguments": {"city": "Paris"}}</tool_call>',
            "<tool_call>", '{"name": "weather", "arguments": {"city": "Pa',
        ),
        reason="content_filter",
        outcome="steered",
    ),
    "call, then said": Script(
        words=('<tool_call>{"name": "weather", "arguments": {"city": "Paris"}}</tool_call>',),
        outcome="said", said=SAID,
    ),
    "said in a call": Script(
        words=('<tool_call>{"name": "weather", "arguments": {"city": "Pa',),
        outcome="said", said=SAID,
    ),
    "said before a call": Script(
        words=('Well. <tool_call>{"name": "wea',), outcome="said", said=SAID
    ),
    "cut at once": Script(words=(), reason="content_filter", outcome="said"),
    "cut in arguments": Script(
        words=('{"city": "Pa',), reason="content_filter", outcome="blocked"
    ),
}  # fmt: skip


@dataclass
class FakeService:
    """Token ids are the prompt's UTF-8 bytes; the last line of a prompt names its script."""

    info: LanguageModelInfo = field(
        default_factory=lambda: LanguageModelInfo(
            name="fake",
            engine="fake",
            created=1,
            max_context=4096,
            policies=("none", "strict"),
            tools=ToolFormat(HERMES),
        )
    )
    record: Record = lambda request, verdict: None
    refusal: GuardError | None = None
    """What `submit` raises, if anything."""
    submitted: list[TextRowRequest] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    chats: list[list[dict[str, Any]]] = field(default_factory=list)
    """The messages of each chat."""
    offered: list[OfferedTools | None] = field(default_factory=list)
    """The tools of each chat."""
    stopped: asyncio.Event = field(default_factory=asyncio.Event)
    closed: int = 0

    def encode_chat(
        self,
        messages: Sequence[dict[str, Any]],
        tools: OfferedTools | None = None,
        *,
        by_turn: bool = False,
    ) -> Prompt:
        """The texts, a line for each, and for an image its "[height x width]"; the last line names
        the script."""
        contents = [message["content"] for message in messages]
        lines = [
            part if isinstance(part, str) else part["text"] if "text" in part else image_line(part)
            for content in contents
            for part in ([content] if isinstance(content, str) else content)
        ]
        self.chats.append([dict(message) for message in messages])
        self.offered.append(tools)
        return self.encode("\n".join(lines))

    def encode(self, text: str) -> Prompt:
        return Prompt(tuple(text.encode()))

    async def prepare(self, requests: Sequence[TextRowRequest]) -> None:
        """A constraint is taken, and has no effect."""

    def submit(self, requests: Sequence[TextRowRequest]) -> list[FakeRow]:
        if self.refusal is not None:
            raise self.refusal
        self.submitted.extend(requests)
        return [FakeRow(self, request) for request in requests]

    def ready(self) -> bool:
        return not self.closed

    def queued(self) -> int:
        return 3

    def close(self) -> None:
        self.closed += 1
        self.stopped.set()


def image_line(part: dict[str, Any]) -> str:
    height, width, _ = part["image"].shape
    return f"[{height} x {width}]"


class FakeRow:
    """No generator: closing one that has not started runs none of its code."""

    def __init__(self, service: FakeService, request: TextRowRequest) -> None:
        self.service = service
        self.request = request
        line = bytes(token % 256 for token in request.prompt.tokens).decode(errors="replace")
        self.script = SCRIPTS.get(line.rpartition("\n")[2], Script())
        self.sent = 0
        self.is_ended = False
        self.over = False

    def __aiter__(self) -> FakeRow:
        return self

    async def __anext__(self) -> Event:
        if self.over:
            raise StopAsyncIteration
        most = self.sent if self.is_ended else self.request.sampling.max_tokens
        words = self.script.words[:most]
        if self.script.delay_s:
            await self._pause()
        if self.sent < len(words):
            word = words[self.sent]
            self.sent += 1
            return TextDelta(word, self._logprobs(word))
        if self.script.said and self.sent == len(words):
            self.sent += 1
            return TextDelta(self.script.said, said=True)
        verdict = self._verdict(self.script.outcome)
        self._end(verdict)
        if self.script.error is not None:
            raise self.script.error(verdict)
        cut_short = len(words) < len(self.script.words) and not self.is_ended
        return FinishedText(
            "length" if cut_short else self.script.reason,
            len(self.request.prompt),
            len(words),
            verdict,
            self.script.stop,
        )

    async def _pause(self) -> None:
        try:
            async with asyncio.timeout(self.script.delay_s):
                await self.service.stopped.wait()
        except TimeoutError:
            return
        verdict = self._verdict("error")
        self._end(verdict)
        raise ServiceStopped("shutting down", verdict=verdict)

    def _end(self, verdict: Verdict) -> None:
        self.over = True
        self.service.record(self.request, verdict)

    def _verdict(self, outcome: Outcome) -> Verdict:
        guard = GuardVerdict(
            guard="books",
            concept="character/x",
            method="steer",
            score=self.script.score,
            threshold=0.5,
            fired=outcome in ("steered", "blocked"),
            action="steer",
            error="NaN" if outcome == "error" else None,
        )
        return Verdict(
            self.request.request_id, self.service.info.name, self.request.policy, outcome,
            (guard,), 1.5,
        )  # fmt: skip

    def _logprobs(self, word: str) -> tuple[TokenLogprob, ...]:
        top = self.request.sampling.top_logprobs
        if top is None:
            return ()
        others = [(7, word, -0.5), (8, "\ufffd", -2.0), (9, "x", -math.inf)][:top]
        return (TokenLogprob(7, word, -0.5, tuple(others)),)

    def end(self) -> None:
        """The next event is the last one."""
        self.is_ended = True

    async def aclose(self) -> None:
        if not self.over:
            self._end(self._verdict("pass"))
            self.service.cancelled.append(self.request.request_id)
