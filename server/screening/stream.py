"""A streamed answer on its way through the screens: held, read, written over, ended."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import zip_longest
from typing import Any, Protocol

from server.screening.findings import Findings, Seen, apart, blocks, redactions
from server.screening.formats.base import Group, Slot, StreamFormat, framed
from server.screening.held import HeldText
from server.screening.redaction import Placeholders
from server.screening.rewriting import write_over
from server.screening.sse import DONE, BrokenStream, EventReader, SentEvent
from server.screening.walk import Piece, texts_of

LOOKBACK = 500
"""Characters behind what is held that are read with it: what a classifier needs of context."""


COMMENT = b":\n\n"
MOST_HELD = 20_000
"""Events in the queue of a stream."""
_SPELLING = {"logprobs", "top_logprobs", "token_ids", "prompt_token_ids", "prompt_logprobs"}


class Read(Protocol):
    """Has the screens of the policy read every text: all of them, classifiers its last `tail`
    characters, or `patterns` alone."""

    def __call__(
        self, texts: Sequence[str], /, tail: int | None = None, *, patterns: bool = False
    ) -> Awaitable[Sequence[Sequence[Seen]]]: ...


@dataclass(slots=True)
class _Part:
    """A slot's text, by its end in its channel."""

    slot: Slot
    channel: HeldText
    end: int


@dataclass(slots=True)
class _Item:
    """An event in the queue. `groups` empty: it waits for all before it. `whole`: it has texts that
    add to no channel."""

    raw: bytes
    name: str = ""
    event: dict[str, Any] | None = None
    groups: Sequence[Group] = ()
    parts: list[_Part] = field(default_factory=list)
    reach: int = 0
    written: bool = False
    whole: bool = False


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
        read: Read,
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
        self._read, self._verdict = read, verdict
        self._placeholders, self._reads, self._restoring = placeholders, reads, restoring
        self._choices = choices
        hold_back = findings.plan.settings.hold_back_chars if reads else 0
        # a placeholder must be known whole before its first character leaves
        marks = 2 * placeholders.longest + 4 if restoring else 0
        self._hold_back = max(hold_back, marks, 4)
        # what is longer than is held is found where it goes on
        self._lookback = max(LOOKBACK, findings.plan.longest) if reads else marks
        self._events = EventReader(event_limit)
        self._queue: list[_Item] = []
        self._channels: dict[Hashable, HeldText] = {}
        self._paths: dict[HeldText, str] = {}
        self._of_group: dict[Group, set[Hashable]] = {}
        self._reach: dict[Group, int] = {}
        self._cut: set[Group] = set()
        self._waiting: set[Group] = set()
        self._barrier = False

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
        """What is held for longer than the policy wants, once it has been read."""
        return await self._settle(list(self._of_group))

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
            self._queue.append(_Item(sent.raw))
            return out + self._release()
        event = _parsed(sent.data)
        events = self.form.split(event)
        out = b""
        for each in events:
            out += await self._take_event(
                _Item(sent.raw, sent.name, each, written=each is not event)
            )
            if self.over:
                break
        return out

    async def _take_event(self, item: _Item) -> bytes:
        event = item.event
        assert event is not None
        item.groups = self.form.groups(event)
        if item.groups and all(group in self._cut for group in item.groups):
            return b""
        slots = self.form.slots(event)
        if await self._read_whole(event, slots, item):
            return self._end_groups(item.groups or list(self._of_group) or [0])
        touched = self._add(item, slots)
        if not touched and not item.whole:
            # tokens of no text that is here
            item.written = without_tokens(event) or item.written
        if self.form.carries_verdict(event):
            item.written = True
        self._queue.append(item)
        if len(self._queue) > MOST_HELD:
            raise BrokenStream(f"more than {MOST_HELD} events come without text")
        ended = [group for group in self.form.over(event) if group not in self._cut]
        out = await self._settle(ended) if ended else b""
        read, more = await self._advance(touched)
        if read or ended or not (self._queue and self._queue[-1] is item):
            return out + more + self._release()
        # where nothing has been read, nothing but the event itself can leave
        return out + more + self._release_last()

    async def _read_whole(self, event: dict[str, Any], slots: Sequence[Slot], item: _Item) -> bool:
        """Read the texts of an event that are whole; True where one of them ends the answer."""
        ours = {(id(slot.holder), slot.key) for slot in slots}
        pieces = [
            piece
            for piece in texts_of(event, "response").pieces
            if (id(piece.holder), piece.key) not in ours
        ]
        item.whole = bool(pieces)
        read = await self._read([piece.text for piece in pieces]) if self._reads and pieces else ()
        for piece, seen in zip_longest(pieces, read, fillvalue=()):
            assert isinstance(piece, Piece)
            acting = self.findings.take(seen, piece.path, answer=True)
            if blocks(acting) or (piece.is_key and redactions(acting)):
                return True  # a name cannot be written over
            if write_over(piece, acting, self._placeholders, restoring=self._restoring):
                item.written = True
                without_tokens(event)
        return False

    def _add(self, item: _Item, slots: Sequence[Slot]) -> list[tuple[Group, HeldText]]:
        touched = []
        for slot in slots:
            held = self._channels.get(slot.channel)
            if held is None:
                held = self._channels[slot.channel] = self._opened(slot)
                self._paths[held] = slot.path
                self._of_group.setdefault(slot.group, set()).add(slot.channel)
            if slot.text:
                held.hold()
                held.add(slot.text)
                touched.append((slot.group, held))
            self._reach[slot.group] = self._reach.get(slot.group, 0) + len(slot.text)
            item.reach = self._reach[slot.group]
            item.parts.append(_Part(slot, held, held.length))
        return touched

    def _opened(self, slot: Slot) -> HeldText:
        replace = partial(self._placeholders.replacement, quoted=slot.quoted)
        return HeldText(self._hold_back, self._lookback, replace)

    async def _advance(self, touched: Sequence[tuple[Group, HeldText]]) -> tuple[bool, bytes]:
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
            if not waits or waits[0].slot.group in looked:
                continue
            group = waits[0].slot.group
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

    async def _settle(self, groups: Sequence[Group]) -> bytes:
        """Read all that has come of `groups`, and let it go."""
        out = b""
        for group in groups:
            for channel in self._of_group.get(group, ()):
                held = self._channels[channel]
                if group not in self._cut:
                    if await self._read_due(held, all=True):
                        out += self._end_groups([group])
                    else:
                        held.let_go()
        return out + self._release()

    async def _read_due(self, held: HeldText, *, all: bool) -> bool:
        """Read what is due of a channel; True where it ends the answer."""
        for window in held.due(all=all):
            acting: list[Seen] = []
            if self._reads:
                (seen,) = await self._read([window.text], self._hold_back + LOOKBACK)
                acting = self.findings.take(seen, self._paths[held], answer=True)
                if blocks(acting):
                    return True
            spans = redactions(acting)
            if self._restoring:
                spans = apart([*spans, *self._placeholders.find(window.text)])
            held.seen(window, spans)
        return False

    def _release(self) -> bytes:
        """The events that may leave, in the order of their groups."""
        out = bytearray()
        kept: list[_Item] = []
        self._waiting, self._barrier = set(), False
        for item in self._queue:
            if self._may_leave(item, behind=bool(kept)):
                out += self._written(item)
            else:
                kept.append(item)
                self._waiting.update(item.groups)
                self._barrier = self._barrier or not item.groups
        self._queue = kept
        return bytes(out)

    def _release_last(self) -> bytes:
        """As `_release`, where nothing but the last event is new."""
        item = self._queue.pop()
        if self._may_leave(item, behind=bool(self._queue)):
            return self._written(item)
        self._queue.append(item)
        self._waiting.update(item.groups)
        self._barrier = self._barrier or not item.groups
        return b""

    def _may_leave(self, item: _Item, *, behind: bool) -> bool:
        first = not self._waiting.intersection(item.groups) if item.groups else not behind
        free = all(part.end <= part.channel.free for part in item.parts)
        return first and free and not self._barrier

    def _written(self, item: _Item) -> bytes:
        event = item.event
        if event is None:
            return item.raw
        self.form.sent(event)
        for part in item.parts:
            text = part.channel.take(part.end) if part.end > part.channel.left else ""
            if text != part.slot.text:
                part.slot.holder[part.slot.key] = text
                item.written = True
                without_tokens(event)
        if not item.written:
            return item.raw
        if self.form.carries_verdict(event):
            event["guard"] = self._verdict(event.get("guard"))
        return framed(event, item.name)

    def _end_groups(self, groups: Sequence[Group]) -> bytes:
        """End them as a content filter does, with what is free of them."""
        out = bytearray(self._release())
        for group in groups:
            if group in self._cut:
                continue
            out += self._free_rest(group)
            self._queue = [item for item in self._queue if group not in item.groups]
            self._cut.add(group)
            for event in self.form.cut(group, self._verdict(None)):
                out += event
        if len(self._cut) >= self._choices:
            self.over = True
            self._queue = []
            for event in self.form.close(self._verdict(None)):
                out += event
        return bytes(out)

    def _free_rest(self, group: Group) -> bytes:
        """What is free of the first event of a group that is not so as a whole."""
        for item in self._queue:
            if group not in item.groups or not item.parts:
                continue
            for part in item.parts:
                free = min(part.end, part.channel.free)
                text = part.channel.take(free) if free > part.channel.left else ""
                part.slot.holder[part.slot.key] = text
            if item.event is None or not any(part.slot.text for part in item.parts):
                return b""
            without_tokens(item.event)
            return framed(item.event, item.name)
        return b""


def without_tokens(value: Any) -> bool:
    """Take out the tokens of texts that were written over, which spell them; whether there were."""
    taken = False
    if isinstance(value, dict):
        for name, item in value.items():
            if name in _SPELLING and item is not None:
                value[name], taken = None, True
            else:
                taken = without_tokens(item) or taken
    elif isinstance(value, list):
        for item in value:
            taken = without_tokens(item) or taken
    return taken


def _parsed(data: str) -> dict[str, Any]:
    try:
        event = json.loads(data)
    except (ValueError, RecursionError):
        raise BrokenStream("an event is no JSON") from None
    if not isinstance(event, dict):
        raise BrokenStream("an event is no JSON object")
    return event
