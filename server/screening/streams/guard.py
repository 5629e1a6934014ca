"""Screening of a streamed response: its text is held back, read, rewritten, or cut."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

from guard.plans.screens import TextScreen
from server.error_shapes import SentStream
from server.screening.answers.app_verdicts import TakenVerdicts
from server.screening.bodies.scanner import quoted
from server.screening.findings import Findings, ScreenedText, blocks, merge_spans, redactions
from server.screening.spans import Span
from server.screening.streams.channel import Buffer, ChannelBuffer
from server.screening.streams.event_queue import (
    EventQueue,
    SlotText,
    WaitingEvent,
    parsed,
    without_tokens,
)
from server.screening.streams.event_texts import EventTexts, StreamScreens
from server.screening.streams.formats.base import Group, Slot, StreamFormat, is_error
from server.screening.streams.hold_back import HoldBackBuffer, Window
from server.screening.streams.open_end import OpenText
from server.screening.streams.reach import Reach
from server.screening.streams.sse import DONE, BrokenStream, EventReader, SentEvent
from server.screening.texts.joins import seams_of
from server.screening.texts.redaction import Placeholders
from server.wire.long_work import run_by_size

LOOKBACK = 500
"""Characters before the held text that are read with it: the context that a classifier needs."""
MAX_GROUPS, MAX_CHANNELS = 256, 4096
"""Choices of a stream that have text, and its texts: contents, arguments of calls, items."""
COMMENT = b":\n\n"


class StreamGuard:
    """Takes the bytes of a stream of events, gives those that may leave.

    The text is read where the policy screens responses, and `placeholders` are restored where it
    says so. `choices`: the groups that were asked for. `own_app`: error events and `guard`
    objects are this server's own, and are not read. `event_limit`: bytes of an event, which may
    hold a picture.
    """

    def __init__(
        self,
        stream_format: StreamFormat,
        findings: Findings,
        screens: StreamScreens,
        placeholders: Placeholders,
        *,
        choices: int,
        own_app: bool,
        event_limit: int,
    ) -> None:
        self.is_over = False
        """Whether nothing more is to leave: the rest of the stream is not wanted."""
        plan = findings.plan
        self._format, self._findings, self._screens = stream_format, findings, screens
        self._placeholders, self._choices = placeholders, choices
        self._own_app = own_app
        self._reads, self._restores = bool(plan.answering), plan.settings.restore
        hold_back = plan.settings.hold_back_chars if self._reads else 0
        # a placeholder must be known as a whole before its first character leaves
        restoration = 2 * placeholders.max_length + 4 if self._restores else 0
        self._hold_back = max(hold_back, restoration, 4)
        # a match longer than that is found where it goes on
        self._lookback = max(LOOKBACK, plan.longest) if self._reads else restoration
        self._reader = EventReader(event_limit)
        self._queue = EventQueue(
            stream_format, screens.guard_object, screens.put_back, 2 * event_limit
        )
        self._heads = [screen for screen in plan.answering if screen.head is not None]
        self._lists = [screen for screen in plan.answering if screen.head is None]
        # two names of two texts would be one
        self._crossing = [screen for screen in self._lists if screen.entities is None]
        self._buffers: dict[Hashable, Buffer] = {}
        self._paths: dict[Buffer, str] = {}
        # those with text that has not been released, in order
        self._open: dict[Group, dict[Buffer, None]] = {}
        self._reach = Reach(self._hold_back)
        self._cut_groups: set[Group] = set()
        # those that have grown since they were read, and the events that came meanwhile
        self._grown: dict[Buffer, Group] = {}
        self._waits_to_be_read = 0
        # of events that come together; what comes before a block leaves event by event
        may_block = any(screen.action == "block" for screen in plan.answering)
        self._most_at_once = 1 if may_block else 64
        # nothing of an object leaves before all of it was read
        self._leaves_whole = may_block and stream_format.options.has_form
        self._has_done = False
        self._event_texts = EventTexts(
            *(findings, screens, placeholders),
            own_app=own_app,
            reports_errors=stream_format.reports_errors,
        )

    @property
    def sent(self) -> SentStream:
        """What has left, for an error at the end."""
        return self._format.sent()

    @property
    def has_ended(self) -> bool:
        """Whether the stream has ended as its API ends streams, or been cut."""
        return self.is_over or self._has_done or self._format.is_complete

    @property
    def is_broken_off(self) -> bool:
        """Whether its end is missing, if no more comes."""
        return self._format.has_last_event and not self.has_ended

    @property
    def is_holding(self) -> bool:
        """Whether any event waits."""
        return bool(self._queue)

    async def feed(self, chunk: bytes) -> bytes:
        """The bytes that may leave once `chunk` has come. Raises BrokenStream."""
        out = bytearray()
        for event in self._reader.feed(chunk):
            if self.is_over:
                break
            out += await self._take(event)
            if self._waits_to_be_read >= self._most_at_once:
                out += await self._read_grown()
        if self._waits_to_be_read and not self.is_over:
            out += await self._read_grown()
        return bytes(out)

    async def flush(self) -> bytes:
        """Read and release all text that is held, but for a part of a placeholder at its end."""
        return await self._read_rest(list(self._open), is_end=False)

    async def end(self) -> bytes:
        """The bytes that are left when the stream has ended. Raises BrokenStream."""
        out = bytearray()
        for event in self._reader.rest():
            if not self.is_over:
                out += await self._take(event)
        if not self.is_over:
            out += await self._read_rest(list(self._open))
        return bytes(out)

    async def _take(self, sent: SentEvent) -> bytes:
        if not sent.data:
            return COMMENT  # it keeps a connection open, so it does not wait
        if sent.data.strip() == DONE:
            self._has_done = True
            out = await self._read_rest(list(self._open))
            if self.is_over:
                return out
            self._queue.put(WaitingEvent(sent.raw))
            return out + self._queue.release()
        event, has_duplicates = await run_by_size(len(sent.data), parsed, sent.data)
        # few events have one; where its name is spelled otherwise it is read as a text
        verdicts = self._screens.take_verdicts(event) if '"guard"' in sent.data else None
        self._format.observe(event)
        out = b""
        for part in self._format.split(event):
            # of names that stand twice, the client gets those that were read
            is_changed = part is not event or bool(verdicts) or has_duplicates
            out += await self._take_event(sent, part, verdicts, is_changed=is_changed)
            if self.is_over:
                break
        return out

    async def _take_event(
        self,
        sent: SentEvent,
        event: dict[str, Any],
        verdicts: TakenVerdicts | None,
        *,
        is_changed: bool,
    ) -> bytes:
        groups = self._format.groups(event)
        if groups and all(group in self._cut_groups for group in groups):
            return b""
        slots = self._format.slots(event)
        texts = self._event_texts.of(event, slots)
        name, rewritten = sent.name, await self._event_texts.screen(event, texts, slots)
        if rewritten is None:
            out = await self._read_grown()
            return out + self._cut(groups or list(self._reach.groups) or [0])
        if self._format.reports_errors and not slots and is_error(event):
            if not self._own_app:
                name, event = self._format.error_event(event)
            if verdicts or not self._own_app:
                self._format.give_verdict(event, self._screens.guard_object())
                rewritten = True
        self._format.passed(event)
        item = WaitingEvent(sent.raw, name, groups=groups, mark=self._format.mark(event))
        item.verdicts = verdicts or None
        touched = self._add(item, slots)
        self._seal(item, event)
        if not touched and not texts.pieces:
            # tokens without the text that they spell
            rewritten = without_tokens(event) or rewritten
        if is_changed or rewritten or self._format.carries_verdict(event):
            item.event, item.slots = event, slots
        self._queue.put(item)
        self._grown.update((buffer, group) for group, buffer in touched)
        self._waits_to_be_read += 1
        ended = [g for g in self._format.ended_groups(event) if g not in self._cut_groups]
        if not ended:
            return b""
        return await self._read_rest(ended, is_end=self._format.ends_channels(event))

    async def _read_grown(self) -> bytes:
        """Read what has come since the last time, once for all events that came together."""
        touched = [(group, buffer) for buffer, group in self._grown.items()]
        # where nothing is read, only a new event can leave
        is_one, self._waits_to_be_read = self._waits_to_be_read == 1, 0
        self._grown.clear()
        has_read, out = await self._read_due(touched)
        release = self._queue.release_last if is_one and not has_read else self._queue.release
        return out + release()

    def _add(self, item: WaitingEvent, slots: Sequence[Slot]) -> list[tuple[Group, Buffer]]:
        """Add the texts of slots to their buffers; return the buffers that have grown."""
        touched = []
        for slot in slots:
            buffer = self._buffers.get(slot.channel)
            if buffer is None:
                self._require_few(slot.group)
                buffer = self._new_buffer(slot)
                self._buffers[slot.channel] = buffer
                self._paths[buffer] = slot.path
            if slot.text:
                buffer.hold()
                buffer.add(slot.text)
                self._open.setdefault(slot.group, {})[buffer] = None
                touched.append((slot.group, buffer))
            self._reach.grow(slot.group, buffer, len(slot.text), self._buffers.get(slot.ends))
            item.parts.append(SlotText(slot.group, buffer, buffer.length, slot.text))
        return touched

    def _new_buffer(self, slot: Slot) -> Buffer:
        if slot.is_signed:
            # it may be signed later, and is not altered
            return self._text_buffer(is_sealed=True)
        numbers = self._placeholders if self._restores else None
        return ChannelBuffer(
            self._text_buffer,
            numbers=numbers,
            heads=bool(self._heads),
            leaves_whole=self._leaves_whole,
        )

    def _text_buffer(
        self, *, prefix: str = "", is_number: bool = False, is_sealed: bool = False
    ) -> HoldBackBuffer:
        def replace_number(span: Span, text: str) -> str:
            return f'"{quoted(self._placeholders.replacement(span, text, is_number=True))}"'

        return HoldBackBuffer(
            self._hold_back,
            self._lookback,
            replace_number if is_number else self._placeholders.replacement,
            open_text=self._open_text(is_sealed=is_sealed) if not is_number else None,
            prefix=prefix,
            atomic=is_number,
            sealed=is_sealed,
        )

    def _open_text(self, *, is_sealed: bool) -> OpenText | None:
        """The open end of a new text; None where classifiers read it too."""
        if self._heads or any(screen.patterns is None for screen in self._lists):
            return None
        plan = self._findings.plan
        placeholders = self._placeholders if self._restores and not is_sealed else None
        longest = max(self._hold_back, plan.longest)
        return OpenText(plan.answering_patterns, placeholders, longest)

    def _seal(self, item: WaitingEvent, event: dict[str, Any]) -> None:
        """An event with the signature of a channel waits for the channel's text."""
        channel = self._format.signed_channel(event)
        buffer = None if channel is None else self._buffers.get(channel)
        if buffer is not None:
            item.signs = buffer

    async def _read_due(self, touched: Sequence[tuple[Group, Buffer]]) -> tuple[bool, bytes]:
        """Read the windows that are due; return whether there were any, and the bytes of cuts."""
        out, has_read = b"", False
        for group, buffer in touched:
            free = buffer.free
            if group not in self._cut_groups and await self._read_windows(buffer, all=False):
                out += self._cut([group])
            has_read = has_read or buffer.free != free
        # a channel that goes quiet while others of its group go on is not waited for
        for group in dict.fromkeys(group for group, _ in touched):
            item = self._queue.first_held(group)
            if item is None:
                continue
            for part in [part for part in item.parts if part.end > part.buffer.free]:
                if group in self._cut_groups or not self._reach.is_quiet(group, part.buffer):
                    break
                has_read = True
                if await self._read_windows(part.buffer, all=True):
                    out += self._cut([group])
                    break
                part.buffer.release()
        return has_read, out

    async def _read_rest(self, groups: Sequence[Group], *, is_end: bool = True) -> bytes:
        """Read all text of `groups` and release it; `is_end`: no more of it comes."""
        out = b""
        for group in groups:
            for buffer in self._open.pop(group, ()):
                if group in self._cut_groups:
                    break
                if is_end:
                    buffer.finish()
                if await self._read_windows(buffer, all=True):
                    out += self._cut([group])
                    break
                buffer.release(0 if is_end else self._partial_placeholder(buffer))
                if buffer.free < buffer.length:
                    self._open.setdefault(group, {})[buffer] = None
        return out + self._queue.release()

    def _require_few(self, group: Group) -> None:
        """Raise BrokenStream where the stream has too many texts to add one in `group`."""
        if len(self._buffers) >= MAX_CHANNELS:
            raise BrokenStream(f"it has more than {MAX_CHANNELS} texts")
        if group not in self._reach.groups and len(self._reach.groups) >= MAX_GROUPS:
            raise BrokenStream(f"it has more than {MAX_GROUPS} choices")

    def _partial_placeholder(self, buffer: Buffer) -> int:
        """Characters at the end of a buffer that may begin a placeholder."""
        if not self._restores:
            return 0
        return self._placeholders.partial_length(buffer.tail(self._placeholders.max_length))

    async def _read_windows(self, buffer: Buffer, *, all: bool) -> bool:
        """Read the due windows of a channel; return whether they block it."""
        for window in buffer.due_windows(all=all):
            acting: list[ScreenedText] = []
            if self._reads:
                tail, screens = self._hold_back + LOOKBACK, self._screens_of(window)
                (results,) = await self._screens.read([window.reading], screens, tail)
                acting = self._findings.add(results, self._paths[buffer], in_response=True)
                if blocks(acting):
                    return True
            spans = redactions(acting)
            if self._restores and window.screens != "heads" and not window.buffer.is_sealed:
                spans = merge_spans([*spans, *self._placeholders.find(window.reading)])
            window.mark_read(spans)
        return isinstance(buffer, ChannelBuffer) and await self._is_crossed(buffer)

    async def _is_crossed(self, buffer: ChannelBuffer) -> bool:
        """Whether something that must not leave goes on from one value of JSON in another."""
        for texts in buffer.take_seams() if self._crossing else ():
            seams = seams_of(texts, (None, None))
            results = await self._screens.read([seam.text for seam in seams], self._crossing)
            rows = [
                [seam.crossing(result) for result in row]
                for seam, row in zip(seams, results, strict=True)
            ]
            if not any(result.fired for row in rows for result in row):
                continue
            # what is in one of them alone has been found there
            apart = [
                [span for result in row for span in result.spans]
                for row in await self._screens.read(texts, self._crossing)
            ]
            for seam, row in zip(seams, rows, strict=True):
                found = [seam.without(result, apart) for result in row]
                if self._findings.add(found, self._paths[buffer], in_response=True):
                    return True
        return False

    def _screens_of(self, window: Window) -> Sequence[TextScreen]:
        if window.screens == "all":
            return self._findings.plan.answering
        return self._heads if window.screens == "heads" else self._lists

    def _cut(self, groups: Sequence[Group]) -> bytes:
        """End groups as a content filter does, after their free text."""
        out = bytearray(self._queue.release())
        for group in groups:
            if group in self._cut_groups:
                continue
            out += self._queue.drop(group)
            self._cut_groups.add(group)
            for event in self._format.cut_events(group, self._screens.guard_object()):
                out += event
        if len(self._cut_groups) >= self._choices:
            self.is_over = True
            self._queue.clear()
            for event in self._format.closing_events(self._screens.guard_object()):
                out += event
        return bytes(out)
