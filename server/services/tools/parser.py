"""From the text of an answer to text and calls of tools, as the answer comes."""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterator
from dataclasses import dataclass

from server.services.tools.call_reader import CallReader, NotACall
from server.services.tools.family import Opening, ToolFamily

_BEFORE = " \t\r\n["
"""What may stand before the first call of an opening."""
_BETWEEN = " \t\r\n,;]}"
"""What may stand between its calls: a brace too many is a slip of the model."""
LONGEST_NAME = 256
"""Characters of what may be the name of a tool before its arguments."""


@dataclass(frozen=True, slots=True)
class CallDelta:
    """A part of the call number `number` of an answer: the first one has its `id` and `name`.

    `arguments` go on with the JSON text of the arguments.
    """

    number: int
    arguments: str = ""
    id: str | None = None
    name: str | None = None


@dataclass(frozen=True, slots=True)
class CallEnd:
    """The call is whole; or it is none after all, and `broken` is the text that the model wrote for
    it, all of which has been arguments in deltas."""

    number: int
    broken: str | None = None


Piece = str | CallDelta | CallEnd


class ToolParser:
    """Text and calls of one answer, in the order in which the model writes them.

    `names` are the tools that may be called; what names another one is text, as is all that does
    not parse. `single` leaves out what is behind its first call. Text that may turn out to be the
    beginning of a call waits, white space before it too, which is left out before a call.
    """

    def __init__(self, family: ToolFamily, names: Collection[str], *, single: bool = False) -> None:
        self._family, self._names, self._single = family, names, single
        self._marked = [opening for opening in family.openings if opening.text]
        self._bare = next((opening for opening in family.openings if not opening.text), None)
        self._held = ""
        """Text that was read and not given back yet."""
        self._opening: Opening | None = None
        """The one behind which the parser is."""
        self._raw: list[str] = []
        """What was read behind the opening and is not part of a whole call."""
        self._reader: CallReader | None = None
        self._broken = False
        self._begun = self._called = False
        self.calls = 0
        """Number of calls that are whole."""
        self._number = -1
        self._is_announced = False

    def push(self, text: str) -> list[Piece]:
        """Read more of the answer."""
        return list(self._merged(self._read(text)))

    def finish(self) -> list[Piece]:
        """The answer has ended."""
        return list(self._merged(self._finished()))

    def cut(self) -> list[Piece]:
        """A guard has ended the answer: a call that has begun is left out; one that the client was
        told of ends broken, with no text in its place."""
        if self._is_announced:
            return [CallEnd(self._number, "")]
        is_text = self._opening is None and not (self._single and self.calls)
        return [self._held] if is_text and self._held else []

    def _read(self, text: str) -> Iterator[Piece]:
        self._held += text
        while self._held and not (self._single and self.calls):
            if self._opening is None:
                yield from self._read_text()
                if self._opening is None:
                    return
            elif not (yield from self._read_calls()):
                return

    def _finished(self) -> Iterator[Piece]:
        if self._single and self.calls:
            return
        opening = self._opening
        if self._reader is not None:
            yield from self._close_reader()
        elif opening is not None and not self._called and not self._broken:
            yield from self._as_text("")
        if self._broken:
            yield from self._more_of_broken(self._held)
            yield from self._end_broken()
            self._held = ""
        behind_calls = self._number >= 0
        is_cut_close = self._called and opening is not None and opening.close.startswith(self._held)
        if not (behind_calls and (is_cut_close or not self._held.strip())):
            yield self._held
        self._held = ""

    # -- text -------------------------------------------------------------------------------------

    def _read_text(self) -> Iterator[Piece]:
        """Give back text up to an opening, or to what may be the beginning of one."""
        text = self._held
        first = text.lstrip()[:1]
        if self._bare is not None and not self._begun and first and first in "{[":
            cut = len(text) - len(text.lstrip())
            self._enter(self._bare, text[:cut], text[cut:])
            return
        found = [(at, o) for o in self._marked if (at := text.find(o.text)) >= 0]
        if found:
            at, opening = min(found, key=lambda item: (item[0], -len(item[1].text)))
            cut = len(text[:at].rstrip())
            if cut:
                self._begun = True
                yield text[:cut]
            behind = at + len(opening.text)
            self._enter(opening, text[cut:behind], text[behind:])
            return
        cut = len(text[: len(text) - self._partial(text)].rstrip())
        if cut:
            self._begun = True
            yield text[:cut]
        self._held = text[cut:]

    def _partial(self, text: str) -> int:
        """Length of the longest beginning of an opening that the text ends with."""
        return max(
            (
                size
                for opening in self._marked
                for size in range(1, min(len(opening.text), len(text) + 1))
                if text.endswith(opening.text[:size])
            ),
            default=0,
        )

    def _enter(self, opening: Opening, raw: str, rest: str) -> None:
        self._opening, self._raw, self._held, self._called = opening, [raw], rest, False

    def _leave(self) -> None:
        self._opening, self._raw, self._begun = None, [], True

    def _as_text(self, read: str) -> Iterator[Piece]:
        """The opening has no calls: it is text, and what follows is read as text."""
        head, *others = self._raw
        self._held = "".join(others) + read + self._held
        self._leave()
        yield head

    # -- calls ------------------------------------------------------------------------------------

    def _read_calls(self) -> Generator[Piece, None, bool]:
        """Read on behind an opening; True where something is left for another state."""
        opening = self._opening
        assert opening is not None
        if self._broken:
            return (yield from self._read_broken(opening))
        if self._reader is None and not (yield from self._begin_call(opening)):
            return self._opening is None
        reader = self._reader
        if reader is None:
            return False
        text, self._held = self._held, ""
        for at, char in enumerate(text):
            try:
                is_read = reader.push(char)
            except NotACall:
                self._held = text[at:]
                yield from self._give_up(reader)
                return True
            if not is_read or reader.is_done:
                self._held = text[at + is_read :]
                yield from self._end_call(reader)
                return True
        yield from self._news(reader)
        return False

    def _begin_call(self, opening: Opening) -> Generator[Piece, None, bool]:
        """Read what is before a call; True where one begins."""
        text = self._held
        start = len(text) - len(text.lstrip(_BETWEEN if self._called else _BEFORE))
        if opening.close and (end := text.find(opening.close)) == start:
            self._raw.append(text[: end + len(opening.close)])
            self._held = text[end + len(opening.close) :]
            yield from self._closed("")
            return False
        self._raw.append(text[:start])
        self._held = rest = text[start:]
        if not rest or (opening.close and opening.close.startswith(rest)):
            return False
        if rest[0] == "{":
            self._reader = CallReader(self._names)
            return True
        if opening.named and not self._called:
            return (yield from self._begin_named(opening, rest))
        yield from self._closed("")
        return False

    def _begin_named(self, opening: Opening, rest: str) -> Generator[Piece, None, bool]:
        """A name before the arguments: `NAME{`, `NAME[ARGS]{`, `NAME[CALL_ID]ID[ARGS]{`."""
        head, brace, behind = rest.partition("{")
        if not brace and len(head) < LONGEST_NAME:
            return False
        name = head
        for separator in opening.separators:
            name = name.partition(separator)[0]
        if not brace or name.strip() not in self._names:
            yield from self._closed("")
            return False
        self._raw.append(head)
        self._held = brace + behind
        self._reader = CallReader(self._names, name.strip())
        return True

    def _closed(self, read: str) -> Iterator[Piece]:
        """The opening has ended: with calls, or without any."""
        if self._called:
            self._leave()
        else:
            yield from self._as_text(read)

    def _news(self, reader: CallReader) -> Iterator[Piece]:
        arguments = reader.take_arguments()
        if not arguments:
            return
        if not self._is_announced:
            self._is_announced = True
            self._number += 1
            yield CallDelta(self._number, "", self._family.new_id(), reader.name)
        yield CallDelta(self._number, arguments)

    def _end_call(self, reader: CallReader) -> Iterator[Piece]:
        yield from self._news(reader)
        yield CallEnd(self._number)
        self.calls += 1
        self._called, self._is_announced, self._reader, self._raw = True, False, None, [""]

    def _give_up(self, reader: CallReader) -> Iterator[Piece]:
        """What the reader has read is no call: text, unless the client was told of it."""
        self._reader = None
        if self._is_announced:
            yield from self._news(reader)
            self._raw.append(reader.raw)
            self._broken = True
        else:
            yield from self._as_text(reader.raw)

    def _close_reader(self) -> Iterator[Piece]:
        reader = self._reader
        assert reader is not None
        if reader.finish():
            yield from self._end_call(reader)
        else:
            yield from self._give_up(reader)

    def _read_broken(self, opening: Opening) -> Generator[Piece, None, bool]:
        """All up to the end of the opening goes on with arguments that are no JSON."""
        text = self._held
        end = text.find(opening.close) if opening.close else -1
        if end >= 0:
            behind = end + len(opening.close)
            yield from self._more_of_broken(text[:end])
            self._raw.append(opening.close)
            self._held = text[behind:]
            yield from self._end_broken()
            return True
        keep = next(
            (n for n in range(len(opening.close) - 1, 0, -1) if text.endswith(opening.close[:n])), 0
        )
        cut = len(text) - keep
        self._held = text[cut:]
        yield from self._more_of_broken(text[:cut])
        return False

    def _more_of_broken(self, text: str) -> Iterator[Piece]:
        self._raw.append(text)
        if text:
            yield CallDelta(self._number, text)

    def _end_broken(self) -> Iterator[Piece]:
        yield CallEnd(self._number, "".join(self._raw))
        self._broken = self._is_announced = False
        self._leave()

    def _merged(self, pieces: Iterator[Piece]) -> Iterator[Piece]:
        """The pieces, texts behind each other as one."""
        text = ""
        for piece in pieces:
            if isinstance(piece, str):
                text += piece
                continue
            if text:
                yield text
                text = ""
            yield piece
        if text:
            yield text
