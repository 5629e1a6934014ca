"""Texts that are read together as well as apart, since a model reads them together.

A word may be split over the parts of a message, over messages, over two arguments of a tool. But
values that nobody wrote one behind the other must not add up to one: sizes in a list of choices are
no phone number.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from classifiers.text.disguises.decoding import encoded_runs
from guard.config.policy_schema import Place
from guard.plans.screens import TextScreen
from server.screening.bodies.fields import CONVERSATION
from server.screening.bodies.texts import JsonText, JsonTexts
from server.screening.findings import ScreenedText, TextReader
from server.screening.spans import Span

REACH: Final = 64
"""Characters at each end of a text in which a match that goes on in another text is looked for."""
_GAP: Final = "\n|\n"
_SEPARATORS: Final = ("\n", "")
_SPOKEN: Final = frozenset({"text", "value", "number", "schema"})
_LETTER: Final = re.compile(r"[^\W\d_]")
_CODE: Final = re.compile(r"(?<![A-Za-z0-9+/_-])[A-Za-z0-9+/_-]{256,}+={0,2}")
_NAME: Final = re.compile(r"[A-Za-z]{3,}")
_SENTENCE: Final = 4
"""Words from which on a name is read as a text."""

Group = Sequence[JsonText]
Joined = tuple[JsonText, Sequence[ScreenedText]]
"""Results for texts that are read together, and the first of these."""


async def read_together(
    reader: TextReader, groups: Sequence[Group], screens: Sequence[TextScreen]
) -> list[Joined]:
    """The results of classifiers for the texts of each group, as one text."""
    if not screens:
        return []
    said = [(group[0], text) for group in groups for text in _texts_of(group) if text]
    if not said:
        return []
    results = await reader.read([text for _, text in said], screens)
    return [(first, result) for (first, _), result in zip(said, results, strict=True)]


async def read_crossing(
    reader: TextReader, pieces: Group, screens: Sequence[TextScreen]
) -> list[Joined]:
    """The results of patterns for what goes on from one text in another. They have read each text
    before; `pieces` are in the order in which a model reads them. Entities are not looked for: two
    names of two texts would be one."""
    screens = [screen for screen in screens if screen.entities is None]
    spoken = [piece for piece in pieces if piece.kind in _SPOKEN]
    units = [piece.unit if piece.kind == "text" else None for piece in spoken]
    seams = seams_of([piece.text for piece in spoken], units) if screens else []
    if not seams:
        return []
    results = await reader.read([seam.text for seam in seams], screens)
    return [
        (spoken[0], [seam.crossing(result) for result in row])
        for seam, row in zip(seams, results, strict=True)
    ]


def _texts_of(group: Group) -> Iterator[str]:
    """What is said in a group as one text, and names that may say something as one each."""
    spoken = [piece for piece in group if piece.kind != "label"]
    yield without_codes("\n".join(piece.text for piece in spoken))
    for piece in group:
        if piece.kind == "label" and len(_NAME.findall(piece.text)) >= _SENTENCE:
            yield piece.text


def without_codes(text: str) -> str:
    """The text without long codes (a picture in an address, an encrypted thought), which an encoder
    cannot read. What decodes to a text is none."""
    return _CODE.sub(_code, text) if len(text) > 256 else text


def _code(run: re.Match[str]) -> str:
    code = run[0]
    digits = sum(map(code.count, "0123456789"))
    capitals = sum(char.isupper() for char in code)
    # random ones have 16 % digits and 41 % capitals
    is_random = digits >= len(code) // 12 and len(code) // 4 <= capitals <= len(code) // 2
    return "" if is_random and not encoded_runs(code) else code


@dataclass(frozen=True, slots=True)
class Seam:
    """The ends of several texts as one text; `starts` are their positions in it.

    Texts of the same unit are parts of one text. Others, and those of unit None, are not, so that
    digits alone do not add up.
    """

    text: str
    starts: Sequence[int]
    units: Sequence[int | None]

    def crossing(self, result: ScreenedText) -> ScreenedText:
        """The result with those matches alone that are in more than one text."""
        if not result.spans:
            return result
        spans = tuple(span for span in result.spans if self._counts(span.start, span.end))
        return replace(result, spans=spans, score=1.0 if spans else 0.0)

    def without(self, result: ScreenedText, apart: Sequence[Sequence[Span]]) -> ScreenedText:
        """The result without what overlaps a match in one of the texts alone; `apart` has those of
        each."""
        known = [
            (start + span.start, start + span.end)
            for start, spans in zip(self.starts, apart, strict=True)
            for span in spans
        ]
        spans = tuple(
            span
            for span in result.spans
            if not any(start < span.end and span.start < end for start, end in known)
        )
        return replace(result, spans=spans, score=1.0 if spans else 0.0)

    def _counts(self, start: int, end: int) -> bool:
        first = bisect_right(self.starts, start) - 1
        last = bisect_right(self.starts, end - 1) - 1
        if first == last:
            return False
        units = set(self.units[first : last + 1])
        is_one_text = len(units) == 1 and None not in units
        return is_one_text or _LETTER.search(self.text, start, end) is not None


def seams_of(texts: Sequence[str], units: Sequence[int | None]) -> list[Seam]:
    """The ends of texts that follow each other, with a line's end between them and with nothing."""
    if len(texts) < 2:
        return []
    ends = [
        text if len(text) <= 2 * REACH else text[:REACH] + _GAP + text[-REACH:] for text in texts
    ]
    seams = []
    for separator in _SEPARATORS:
        starts, position = [], 0
        for text in ends:
            starts.append(position)
            position += len(text) + len(separator)
        seams.append(Seam(separator.join(ends), starts, units))
    return seams


def conversation(texts: JsonTexts, turns: int, places: Container[Place]) -> list[JsonText]:
    """The texts of the last `turns` messages of users and tools, of those whose place is read."""
    messages = [
        unit
        for unit in texts.units()
        if unit[0].place in {"user", "tool"}
        and unit[0].place in places
        and unit[0].path.partition("[")[0] in CONVERSATION
    ]
    return [piece for unit in messages[-turns:] for piece in unit]
