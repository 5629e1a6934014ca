"""Texts to scores: every head in one pass, texts of concurrent requests in one batch."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from classifiers.text.disguises.views import readings
from classifiers.text.encoder.model import TextEncoder
from classifiers.text.heads import TextHeads
from guard.errors import GuardFailed
from guard.plans.screens import TextScreen
from server.screening.errors import TextTooLong
from server.screening.findings import ScreenedText
from server.screening.streams.hold_back import Span
from server.screening.texts.verdict_cache import VerdictCache, exact_key, read_key

CACHE_ENTRIES = 16_384
MOST_AT_ONCE = 32
"""Texts in a batch."""
MOST_CHARS = 4_000_000
"""In all texts of a request, or of an answer."""
_INLINE_CHARS = 4_000
"""Texts of so many characters are gone through for patterns at once; more in a thread."""

Scores = NDArray[np.float32]
A = TypeVar("A")
T = TypeVar("T")


@dataclass(slots=True)
class _Waiting:
    text: str
    future: asyncio.Future[Scores]


class Screener:
    """Reads texts with the screens of any policy. Made and used in one event loop.

    Texts that come while a batch is being encoded make the next one: nothing waits for company.
    """

    def __init__(
        self,
        encoder: TextEncoder | None,
        heads: TextHeads | None,
        *,
        cache_entries: int = CACHE_ENTRIES,
    ) -> None:
        self.cache: VerdictCache[Scores] = VerdictCache(cache_entries)
        self._spans: VerdictCache[tuple[Span, ...]] = VerdictCache(cache_entries)
        self._encoder, self._heads = encoder, heads
        self._waiting: list[_Waiting] = []
        self._worker: asyncio.Task[None] | None = None
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="screens")
        # long texts must not keep those of others from being encoded
        self._patterns_pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="patterns")

    async def read(
        self, texts: Sequence[str], screens: Sequence[TextScreen], tail: int | None = None
    ) -> list[list[ScreenedText]]:
        """What each screen sees in each text; heads in its last `tail` characters, None: in all.

        Raises TextTooLong, and GuardFailed where the encoder fails.
        """
        size = sum(map(len, texts))
        if size > MOST_CHARS:
            raise TextTooLong()
        patterns = [screen for screen in screens if screen.patterns is not None]
        if size <= _INLINE_CHARS or not patterns:
            seen = self._matched(patterns, texts)
        else:
            work = partial(self._matched, patterns, texts)
            loop = asyncio.get_running_loop()
            seen = await loop.run_in_executor(self._patterns_pool, work)
        heads = [screen for screen in screens if screen.head is not None]
        if heads and texts:
            shown = texts if tail is None else [text[-tail:] for text in texts]
            scores = await asyncio.gather(*map(self._scores, shown))
            for found, row in zip(seen, scores, strict=True):
                found += [ScreenedText(screen, float(row[screen.head])) for screen in heads]
        return seen

    def close(self) -> None:
        """Stop; what waits is cancelled."""
        if self._worker is not None:
            self._worker.cancel()
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._patterns_pool.shutdown(wait=False, cancel_futures=True)

    def _matched(
        self, screens: Sequence[TextScreen], texts: Sequence[str]
    ) -> list[list[ScreenedText]]:
        """What each list of patterns sees in each text. In any thread."""
        seen: list[list[ScreenedText]] = []
        for text in texts:
            key = exact_key(text)
            found = []
            for screen in screens:
                assert screen.patterns is not None
                own = key + screen.name.encode()
                spans = self._spans.get(own)
                if spans is None:
                    matches = screen.patterns.find(text)
                    spans = tuple(Span(each.start, each.end, each.label) for each in matches)
                    self._spans.put(own, spans)
                found.append(ScreenedText(screen, 1.0 if spans else 0.0, spans))
            seen.append(found)
        return seen

    async def _in_thread(self, work: Callable[[A], T], argument: A) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, work, argument)

    async def _scores(self, text: str) -> Scores:
        known = self.cache.get(exact_key(text))
        if known is not None:
            return known
        future: asyncio.Future[Scores] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(text, future))
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        return await future

    async def _work(self) -> None:
        while self._waiting:
            wanted = [each for each in self._waiting if not each.future.done()]
            batch, self._waiting = wanted[:MOST_AT_ONCE], wanted[MOST_AT_ONCE:]
            if not batch:
                return
            try:
                scores = await self._in_thread(self._score, [each.text for each in batch])
            except Exception as error:
                failed = GuardFailed(f"the screens' encoder failed: {error}")
                for each in batch:
                    if not each.future.done():
                        each.future.set_exception(failed)
                continue
            for each, row in zip(batch, scores, strict=True):
                if each.future.done():
                    continue
                if np.isfinite(row).all():
                    self.cache.put(exact_key(each.text), row)
                    each.future.set_result(row)
                else:
                    each.future.set_exception(TextTooLong())

    def _score(self, texts: Sequence[str]) -> list[Scores]:
        """Scores `[heads]` of each text: the highest of its readings. In the worker's thread."""
        assert self._encoder is not None and self._heads is not None
        shown = [readings(text) for text in texts]
        keys = [read_key(each) for each in shown]
        known = [self.cache.get(key) for key in keys]
        fresh = [at for at, row in enumerate(known) if row is None]
        flat = [reading for at in fresh for reading in shown[at]]
        if flat:
            encoded = self._encoder.encode(flat)
            scores = encoded.highest(self._heads.scores(encoded.embeddings))
            first = 0
            for at in fresh:
                own = scores[first : first + len(shown[at])]
                first += len(shown[at])
                row = np.where(np.isnan(own).any(0), math.nan, own.max(0))
                known[at] = row
                if np.isfinite(row).all():
                    self.cache.put(keys[at], row)
        return [row for row in known if row is not None]
