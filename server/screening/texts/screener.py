"""Scores of texts: every head in one pass, texts of concurrent requests in one batch, by turns."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from classifiers.text.cascade import Cascade, ReadText
from classifiers.text.disguises.views import readings
from classifiers.text.entities.chunks import chunks_of
from classifiers.text.patterns.matching import have_none
from guard.errors import GuardFailed
from guard.plans.image_screens import ImageClassifiers
from guard.plans.screens import TextScreen
from server.screening.bodies.texts import MAX_TEXTS
from server.screening.errors import TextTooLong, TooManyTexts
from server.screening.findings import ScreenedText, merge_spans
from server.screening.images.screener import ImageScreener
from server.screening.spans import Span
from server.screening.texts.turns import Caller, FairWorker
from server.screening.texts.verdict_cache import VerdictCache, exact_key, read_key

logger = logging.getLogger(__name__)

CACHE_ENTRIES = 16_384
MAX_BATCH = 32
"""Texts in a batch of the encoder."""
MAX_CHARS = 4_000_000
"""Characters in all texts of a request or a response."""
MAX_ENCODED_BYTES = 1_000_000
"""Bytes (UTF-8) of the texts of a request that classifiers have not read before: some 2,500 windows
of the encoder. Characters of all its texts where entities are looked for."""
_BATCH_BYTES = 4096
"""Bytes of a batch of the encoder, unless one text is longer: about 50 ms of one core, and twice as
much where sentences are read too."""
_TEXT_COST = 350
"""What a text costs patterns beside its characters, in characters."""
_INLINE_COST = 16_000
"""The cost up to which patterns run in the event loop: about 2 ms. Others go to a thread."""
_SLICE_COST = 40_000
"""The cost of what the thread does at once: about 6 ms."""
_LONG_COST = 200_000
"""Texts of a higher cost have a thread of their own, since a text cannot be divided."""

Scores = NDArray[np.float32]
Timed = Callable[[Sequence[str], str, float], None]
"""Is told which screens have read together, for which tenant, and how many seconds that took."""


def untimed(screens: Sequence[str], tenant: str, seconds: float) -> None:
    """A `Timed` that does nothing."""


class _Unread(NamedTuple):
    text: str
    tenant: str
    clearable: tuple[int, ...]
    """The heads for which the first stage may clear the text."""


class _Row(NamedTuple):
    """Scores `[heads]`. Those of a text that the first stage has cleared, in whole or in part, are
    for the heads in `cleared` alone."""

    scores: Scores
    cleared: tuple[int, ...] = ()

    def holds_for(self, clearable: tuple[int, ...]) -> bool:
        """Whether they are for one who would have the text cleared for these heads."""
        return not self.cleared or (bool(clearable) and {*clearable} <= {*self.cleared})


class _Unmatched(NamedTuple):
    text: str
    tenant: str
    screens: Sequence[TextScreen]


class Screener:
    """Runs the screens of any policy on texts. To be made and used in one event loop.

    Texts that arrive while a batch is being encoded make the next batch, in which callers take
    turns. What was read for one tenant is not known to another.
    """

    def __init__(
        self,
        cascade: Cascade | None,
        images: ImageClassifiers | None = None,
        *,
        timed: Timed = untimed,
        cache_entries: int = CACHE_ENTRIES,
    ) -> None:
        self.timed = timed
        self.cache: VerdictCache[_Row] = VerdictCache(cache_entries)
        self._spans: VerdictCache[tuple[Span, ...]] = VerdictCache(cache_entries)
        self._cascade = cascade
        self.images = None if images is None else ImageScreener(images)
        """What reads images; None where no policy has them read."""
        self._inline_cost = 0
        self._encoding = FairWorker(
            self._score,
            "screens",
            most_items=MAX_BATCH,
            most_cost=_BATCH_BYTES,
            limit=2 * MAX_ENCODED_BYTES,
        )
        # RE2 does not release the interpreter's lock: more threads would not be faster
        self._matching, self._long_matching = (
            FairWorker(
                self._match_all,
                name,
                most_items=MAX_TEXTS,
                most_cost=_SLICE_COST,
                limit=4 * MAX_CHARS,
            )
            for name in ("patterns", "long-patterns")
        )
        self._naming = FairWorker(
            self._name_all,
            "entities",
            most_items=MAX_BATCH,
            most_cost=_BATCH_BYTES,
            limit=2 * MAX_ENCODED_BYTES,
        )

    async def read(
        self,
        texts: Sequence[str],
        screens: Sequence[TextScreen],
        tail: int | None = None,
        caller: Caller = Caller(),  # noqa: B008  # frozen
    ) -> list[list[ScreenedText]]:
        """The results of each screen for each text, `[texts][screens]`.

        Classifiers read the last `tail` characters of a text, or all of it where that is None.
        Raises TextTooLong, TooManyTexts, TooManyRequests where too much of this caller waits, and
        GuardFailed where the encoder or a model of entities fails.
        """
        size = sum(map(len, texts))
        if size > MAX_CHARS:
            raise TextTooLong()
        if len(texts) > MAX_TEXTS:
            raise TooManyTexts(MAX_TEXTS)
        patterns = [screen for screen in screens if not screen.needs_model]
        naming = [screen for screen in screens if screen.entities is not None]
        heads = [screen for screen in screens if screen.head is not None]
        with self._timing(patterns, caller):
            results = await self._matches(texts, size, patterns, caller)
        if naming:
            if size > MAX_ENCODED_BYTES:
                raise TextTooLong()
            with self._timing(naming, caller):
                entities = await self._entities(texts, naming, caller)
            for text_results, found in zip(results, entities, strict=True):
                text_results += found
        if heads and texts:
            tails = texts if tail is None else [text[-tail:] for text in texts]
            columns = tuple(screen.head for screen in heads if screen.head is not None)
            clearable = columns if all(screen.first_stage for screen in heads) else ()
            with self._timing(heads, caller):
                rows = await self._scores(tails, clearable, caller)
            for text_results, row in zip(results, rows, strict=True):
                text_results += [ScreenedText(screen, float(row[screen.head])) for screen in heads]
        return results

    def close(self) -> None:
        """Stop, and cancel what is pending."""
        for worker in (self._encoding, self._matching, self._long_matching, self._naming):
            worker.close()
        if self.images is not None:
            self.images.close()

    @contextmanager
    def _timing(self, screens: Sequence[TextScreen], caller: Caller) -> Iterator[None]:
        """Tell how long the body took, which these screens share; nothing where it fails."""
        began = time.perf_counter()
        yield
        names = [screen.name for screen in screens]
        self.timed(names, caller.tenant, time.perf_counter() - began)

    async def _matches(
        self, texts: Sequence[str], size: int, screens: Sequence[TextScreen], caller: Caller
    ) -> list[list[ScreenedText]]:
        """The matches of each pattern list in each text, of `size` characters in all."""
        if not screens:
            return [[] for _ in texts]
        if (cost := size + len(texts) * _TEXT_COST) <= _INLINE_COST:
            self._inline_cost += cost
            if self._inline_cost > _SLICE_COST:
                # windows of a long stream follow each other without a wait
                self._inline_cost = 0
                await asyncio.sleep(0)
            return [self._match(text, caller.tenant, screens) for text in texts]
        items = [_Unmatched(text, caller.tenant, screens) for text in texts]
        costs = [len(text) + _TEXT_COST for text in texts]
        is_long = max(costs) > _LONG_COST
        worker = self._long_matching if is_long else self._matching
        return await worker.run(caller.turn, items, costs)

    async def _entities(
        self, texts: Sequence[str], screens: Sequence[TextScreen], caller: Caller
    ) -> list[list[ScreenedText]]:
        """The entities of each screen in each text, found chunk by chunk: callers take turns, and a
        chunk that comes again is not read again."""
        chunks = [(row, chunk) for row, text in enumerate(texts) for chunk in chunks_of(text)]
        items = [_Unmatched(chunk.text, caller.tenant, screens) for _, chunk in chunks]
        costs = [len(chunk.text) for _, chunk in chunks]
        spans: list[list[list[Span]]] = [[[] for _ in screens] for _ in texts]
        found = await self._naming.run(caller.turn, items, costs)
        for (row, chunk), results in zip(chunks, found, strict=True):
            for column, result in enumerate(results):
                spans[row][column] += [
                    replace(span, start=chunk.start + span.start, end=chunk.start + span.end)
                    for span in result.spans
                ]
        return [
            [
                ScreenedText(screen, 1.0 if of_screen else 0.0, tuple(merge_spans(of_screen)))
                for screen, of_screen in zip(screens, row_spans, strict=True)
            ]
            for row_spans in spans
        ]

    def _name_all(self, items: Sequence[_Unmatched]) -> list[list[ScreenedText]]:
        """Runs in the worker's thread. Raises GuardFailed."""
        try:
            return self._match_all(items)
        except Exception as error:
            # its message may quote the text
            logger.error("a model of entities failed: %s", type(error).__name__)
            raise GuardFailed("a model of entities failed: the log has the error's type") from error

    def _match_all(self, items: Sequence[_Unmatched]) -> list[list[ScreenedText]]:
        """Runs in any thread."""
        return [self._match(*item) for item in items]

    def _match(self, text: str, tenant: str, screens: Sequence[TextScreen]) -> list[ScreenedText]:
        # to see that again costs no more than to look for it
        is_none = have_none([screen.patterns for screen in screens if screen.patterns], text)
        text_key = exact_key(text)
        results = []
        for screen in screens:
            if is_none and screen.patterns is not None:
                results.append(ScreenedText(screen, 0.0))
                continue
            key = text_key + screen.name.encode()
            spans = self._spans.get(tenant, key)
            if spans is None:
                matches = screen.find(text)
                spans = tuple(
                    Span(m.start, m.end, m.label, m.confidence, m.country) for m in matches
                )
                self._spans.put(tenant, key, spans)
            results.append(ScreenedText(screen, 1.0 if spans else 0.0, spans))
        return results

    async def _scores(
        self, texts: Sequence[str], clearable: tuple[int, ...], caller: Caller
    ) -> list[Scores]:
        """Scores `[heads]` of each text, which the first stage may clear for these heads."""
        keys = {text: exact_key(text) for text in texts}
        known = {text: self._known(caller.tenant, key, clearable) for text, key in keys.items()}
        unread = [text for text, row in known.items() if row is None]
        sizes = [len(text.encode("utf-8", "surrogatepass")) for text in unread]
        if sum(sizes) > MAX_ENCODED_BYTES:
            raise TextTooLong()
        items = [_Unread(text, caller.tenant, clearable) for text in unread]
        rows = await self._encoding.run(caller.turn, items, sizes)
        for text, row in zip(unread, rows, strict=True):
            if not np.isfinite(row.scores).all():
                raise TextTooLong()
            self.cache.put(caller.tenant, keys[text], row)
            known[text] = row
        return [found.scores for text in texts if (found := known[text]) is not None]

    def _known(self, tenant: str, key: bytes, clearable: tuple[int, ...]) -> _Row | None:
        row = self.cache.get(tenant, key)
        return row if row is not None and row.holds_for(clearable) else None

    def _score(self, items: Sequence[_Unread]) -> list[_Row]:
        """The scores of each text, NaN where one is too long.

        Runs in the worker's thread. Raises GuardFailed.
        """
        try:
            return self._read(items)
        except Exception as error:
            # the reason may name files, and goes into verdicts
            logger.exception("the screens' encoder failed")
            raise GuardFailed("the screens' encoder failed: the log has the reason") from error

    def _read(self, items: Sequence[_Unread]) -> list[_Row]:
        assert self._cascade is not None
        text_readings = [readings(item.text) for item in items]
        keys = [read_key(reading_list) for reading_list in text_readings]
        rows = [
            self._known(item.tenant, key, item.clearable)
            for item, key in zip(items, keys, strict=True)
        ]
        missing = [index for index, row in enumerate(rows) if row is None]
        if missing:
            read = self._cascade.scores(
                [ReadText(items[i].text, text_readings[i], items[i].clearable) for i in missing]
            )
            for index, scores, encoded in zip(missing, *read, strict=True):
                item = items[index]
                rows[index] = row = _Row(scores, () if encoded else item.clearable)
                if np.isfinite(scores).all():
                    self.cache.put(item.tenant, keys[index], row)
        return [row for row in rows if row is not None]
