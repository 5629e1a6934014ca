"""A streamed answer on its way through the screens: held, read, written over, ended."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable, Sequence
from functools import partial
from itertools import zip_longest
from typing import Any, Protocol

from guard.plans.screens import TextScreen
from server.screening.findings import Findings, ScreenedText, apart, blocks, redactions
from server.screening.streams.event_queue import (
    EventQueue,
    SlotText,
    WaitingEvent,
    parsed,
    without_tokens,
)
from server.screening.streams.formats.base import Group, Slot, StreamFormat
from server.screening.streams.hold_back import HoldBackBuffer
from server.screening.streams.sse import DONE, EventReader, SentEvent
from server.screening.texts.json_texts import JsonText, texts_of
from server.screening.texts.redaction import Placeholders
from server.screening.texts.rewriting import write_over

LOOKBACK = 500
"""Characters behind what is held that are read with it: what a classifier needs of context."""


COMMENT = b":\n\n"


class TextReader(Protocol):
    """Has screens read every text, classifiers its last `tail` characters."""

    def __call__(
        self, texts: Sequence[str], screens: Sequence[TextScreen], /, tail: int | None = None
    ) -> Awaitable[Sequence[Sequence[ScreenedText]]]: ...


class StreamGuard:
    """Takes the bytes of one stream of events, gives those that may leave.

    `restoring` placeholders get their originals back. `reads` is False where the policy does not
    look at answers: then nothing but that is done. `choices` are the groups that were asked for.
    `verdict` makes the `guard` object of the last event.
    """

    def __init__(
        self,
        form: StreamFormat,
        findings: Findings,
        read: TextReader,
        verdict: Callable[[dict[str, Any] | None], dict[str, Any]],
        placeholders: Placeholders,
        *,
        reads: bool,
        restoring: bool,
        choices: int,
        event_limit: int,
    ) -> None:
        self.form = form
        self.findings = findings
        self.over = False
        """Nothing more is to leave: the rest of the stream is not wanted."""
        self._read, self._verdict, self._screens = read, verdict, findings.plan.answering
        self._placeholders, self._reads, self._restoring = placeholders, reads, restoring
        self._choices = choices
        hold_back = findings.plan.settings.hold_back_chars if reads else 0
        # a placeholder must be known whole before its first character leaves
        marks = 2 * placeholders.longest + 4 if restoring else 0
        self._hold_back = max(hold_back, marks, 4)
        # what is longer than is held is found where it goes on
        self._lookback = max(LOOKBACK, findings.plan.longest) if reads else marks
        self._events = EventReader(event_limit)
        self._queue = EventQueue(form, verdict)
        self._channels: dict[Hashable, HoldBackBuffer] = {}
        self._paths: dict[HoldBackBuffer, str] = {}
        self._of_group: dict[Group, list[Hashable]] = {}
        self._reach: dict[Group, int] = {}
        self._cut: set[Group] = set()

    @property
    def holding(self) -> bool:
        """Whether anything is held."""
        return bool(self._queue)

    async def feed(self, chunk: bytes) -> bytes:
        """What may leave now that `chunk` has come. Raises BrokenStream."""
        out = bytearray()
        for event in self._events.feed(chunk):
            if self.over:
                break
            out += await self._take(event)
        return bytes(out)

    async def flush(self) -> bytes:
        """What is held for longer than the policy wants, once it has been read; but for half a
        placeholder, which could not be put back then."""
        return await self._settle(list(self._of_group), whole=False)

    async def end(self) -> bytes:
        """What is left when the stream has ended. Raises BrokenStream."""
        out = bytearray()
        for event in self._events.rest():
            if not self.over:
                out += await self._take(event)
        if not self.over:
            out += await self._settle(list(self._of_group))
        return bytes(out)

    async def _take(self, sent: SentEvent) -> bytes:
        if sent.data is None:
            return COMMENT  # it keeps a connection open: nobody waits with it
        if sent.data == DONE:
            out = await self._settle(list(self._of_group))
            if self.over:
                return out
            self._queue.put(WaitingEvent(sent.raw))
            return out + self._queue.release()
        event = parsed(sent.data)
        self.form.note(event)
        out = b""
        for each in self.form.split(event):
            out += await self._take_event(sent, each, split=each is not event)
            if self.over:
                break
        return out

    async def _take_event(self, sent: SentEvent, event: dict[str, Any], *, split: bool) -> bytes:
        groups = self.form.groups(event)
        if groups and all(group in self._cut for group in groups):
            return b""
        slots = self.form.slots(event)
        pieces = _whole_texts(event, slots)
        written = await self._read_whole(event, pieces)
        if written is None:
            return self._end_groups(groups or list(self._of_group) or [0])
        item = WaitingEvent(sent.raw, sent.name, groups=groups, mark=self.form.mark(event))
        touched = self._add(item, slots)
        if not touched and not pieces:
            # tokens of no text that is here
            written = without_tokens(event) or written
        if split or written or self.form.carries_verdict(event):
            item.event, item.slots = event, slots
        self._queue.put(item)
        ended = [group for group in self.form.over(event) if group not in self._cut]
        out = await self._settle(ended) if ended else b""
        read, more = await self._advance(touched)
        if read or ended or not self._queue.ends_with(item):
            return out + more + self._queue.release()
        # where nothing has been read, nothing but the event itself can leave
        return out + more + self._queue.release_last()

    async def _read_whole(self, event: dict[str, Any], pieces: Sequence[JsonText]) -> bool | None:
        """Read the texts of an event that are whole: whether one was written over; None where one
        of them ends the answer."""
        written = False
        read: Sequence[Sequence[ScreenedText]] = ()
        if self._reads and pieces:
            read = await self._read([piece.text for piece in pieces], self._screens)
        for piece, seen in zip_longest(pieces, read, fillvalue=()):
            assert isinstance(piece, JsonText)
            acting = self.findings.take(seen, piece.path, answer=True)
            if blocks(acting) or (piece.is_key and redactions(acting)):
                return None  # a name cannot be written over
            if write_over(piece, acting, self._placeholders, restoring=self._restoring):
                written = True
                without_tokens(event)
        return written

    def _add(self, item: WaitingEvent, slots: Sequence[Slot]) -> list[tuple[Group, HoldBackBuffer]]:
        touched = []
        for slot in slots:
            held = self._channels.get(slot.channel)
            if held is None:
                held = self._channels[slot.channel] = self._opened(slot)
                self._paths[held] = slot.path
                self._of_group.setdefault(slot.group, []).append(slot.channel)
            if slot.text:
                held.hold()
                held.add(slot.text)
                touched.append((slot.group, held))
            self._reach[slot.group] = self._reach.get(slot.group, 0) + len(slot.text)
            item.reach = self._reach[slot.group]
            item.parts.append(SlotText(slot.group, held, held.length, slot.text))
        return touched

    def _opened(self, slot: Slot) -> HoldBackBuffer:
        replace = partial(self._placeholders.replacement, quoted=slot.quoted)
        return HoldBackBuffer(self._hold_back, self._lookback, replace)

    async def _advance(self, touched: Sequence[tuple[Group, HoldBackBuffer]]) -> tuple[bool, bytes]:
        """Read what is due; whether something was."""
        out, read = b"", False
        for group, held in touched:
            before = held.free
            if group not in self._cut and await self._read_due(held, all=False):
                out += self._end_groups([group])
            read = read or held.free != before
        if not touched:
            return read, out
        # a channel that goes quiet while others of its group go on is not waited for
        looked: set[Group] = set()
        for item in list(self._queue):
            waits = [part for part in item.parts if part.end > part.channel.free]
            if not waits or waits[0].group in looked:
                continue
            group = waits[0].group
            looked.add(group)
            if group in self._cut or self._reach[group] - item.reach < self._hold_back:
                continue
            for part in waits:
                read = True
                if await self._read_due(part.channel, all=True):
                    out += self._end_groups([group])
                    break
                part.channel.let_go()
            if len(looked) == len(self._reach):
                break
        return read, out

    async def _settle(self, groups: Sequence[Group], *, whole: bool = True) -> bytes:
        """Read all that has come of `groups`, and let it go; `whole`: no more comes of it."""
        out = b""
        for group in groups:
            for channel in self._of_group.get(group, ()):
                held = self._channels[channel]
                if group not in self._cut:
                    if await self._read_due(held, all=True):
                        out += self._end_groups([group])
                    else:
                        held.let_go(0 if whole else self._begun(held))
        return out + self._queue.release()

    def _begun(self, held: HoldBackBuffer) -> int:
        if not self._restoring:
            return 0
        return self._placeholders.begun(held.ending(self._placeholders.longest))

    async def _read_due(self, held: HoldBackBuffer, *, all: bool) -> bool:
        """Read what is due of a channel; True where it ends the answer."""
        for window in held.due(all=all):
            acting: list[ScreenedText] = []
            if self._reads:
                tail = self._hold_back + LOOKBACK
                (seen,) = await self._read([window.text], self._screens, tail)
                acting = self.findings.take(seen, self._paths[held], answer=True)
                if blocks(acting):
                    return True
            spans = redactions(acting)
            if self._restoring:
                spans = apart([*spans, *self._placeholders.find(window.text)])
            held.seen(window, spans)
        return False

    def _end_groups(self, groups: Sequence[Group]) -> bytes:
        """End them as a content filter does, with what is free of them."""
        out = bytearray(self._queue.release())
        for group in groups:
            if group in self._cut:
                continue
            out += self._queue.drop(group)
            self._cut.add(group)
            for event in self.form.cut(group, self._verdict(None)):
                out += event
        if len(self._cut) >= self._choices:
            self.over = True
            self._queue.clear()
            for event in self.form.close(self._verdict(None)):
                out += event
        return bytes(out)


def _whole_texts(event: dict[str, Any], slots: Sequence[Slot]) -> list[JsonText]:
    """The texts of an event that add to no channel."""
    ours = {(id(slot.holder), slot.key) for slot in slots}
    pieces = texts_of(event, "response").pieces
    return [piece for piece in pieces if (id(piece.holder), piece.key) not in ours]
