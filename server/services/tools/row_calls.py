"""The answers of a request's rows, with the calls of tools in place of their text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from server.services.interface import Event, FinishedText, TextDelta
from server.services.tools.family import ToolFamily
from server.services.tools.offered import OfferedTools
from server.services.tools.parser import Piece, ToolParser


class RowCalls:
    """The events of one row, with the calls of `tools` in place of their text."""

    def __init__(self, family: ToolFamily, tools: OfferedTools) -> None:
        self._single = not tools.parallel
        self._parser = ToolParser(family, tools.names, single=self._single)
        self._parser.push(tools.beginning(family))
        self._is_cut = False
        """Whether the policy's message has ended the answer."""

    def read(self, event: Event) -> Iterator[Event]:
        """The events that stand for one of the row's."""
        if isinstance(event, TextDelta) and event.said:
            self._is_cut = True
            yield from _events(self._parser.cut(), TextDelta(""))
            yield event
        elif isinstance(event, TextDelta):
            yield from _events(self._parser.push(event.text), event)
        elif isinstance(event, FinishedText):
            if not self._is_cut:
                is_filtered = event.reason == "content_filter"
                left = self._parser.cut() if is_filtered else self._parser.finish()
                yield from _events(left, TextDelta(""))
            yield self._ended(event)

    @property
    def is_over(self) -> bool:
        """Whether nothing that follows belongs to the answer."""
        return self._single and self._parser.calls > 0

    def _ended(self, event: FinishedText) -> FinishedText:
        if self._is_cut:
            return event
        # what follows the one call is left out, so that no limit has cut it
        is_whole = event.reason == "stop" or (event.reason == "length" and self.is_over)
        return replace(event, reason="tool_calls") if is_whole and self._parser.calls else event


def _events(pieces: Sequence[Piece], delta: TextDelta) -> Iterator[Event]:
    """`pieces` of a delta as events; its tokens go with the first one."""
    tokens = delta.tokens
    if tokens and not (pieces and isinstance(pieces[0], str)):
        yield TextDelta("", tokens)
        tokens = ()
    for piece in pieces:
        if isinstance(piece, str):
            yield TextDelta(piece, tokens)
            tokens = ()
        else:
            yield piece
