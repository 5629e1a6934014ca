"""Scores of texts: every head in one pass, texts of concurrent requests in one batch."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from classifiers.text.disguises.views import readings
from classifiers.text.encoder.model import TextEncoder
from guard.errors import GuardFailed
from guard.plans.screens import EmbeddingScores, TextScreen
from server.screening.errors import TextTooLong
from server.screening.findings import ScreenedText
from server.screening.spans import Span
from server.screening.texts.verdict_cache import VerdictCache, exact_key, read_key

CACHE_ENTRIES = 16_384
MAX_BATCH = 32
"""Texts in a batch."""
MAX_CHARS = 4_000_000
"""Characters in all texts of a request or a response."""
_INLINE_CHARS = 4_000
"""Characters up to which patterns run in the event loop; longer texts go to a thread."""

Scores = NDArray[np.float32]


@dataclass(slots=True)
class _PendingText:
    text: str
    future: asyncio.Future[Scores]


class Screener:
    """Runs the screens of any policy on texts. To be made and used in one event loop.

    Texts that arrive while a batch is being encoded make the next batch: no text waits for others.
    """

    def __init__(
        self,
        encoder: TextEncoder | None,
        heads: EmbeddingScores | None,
        *,
        cache_entries: int = CACHE_ENTRIES,
    ) -> None:
        self.cache: VerdictCache[Scores] = VerdictCache(cache_entries)
        self._spans: VerdictCache[tuple[Span, ...]] = VerdictCache(cache_entries)
        self._encoder, self._heads = encoder, heads
        self._pending: list[_PendingText] = []
        self._worker: asyncio.Task[None] | None = None
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="screens")
        # long texts must not keep those of other requests from being encoded
        self._patterns_pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="patterns")

    async def read(
        self, texts: Sequence[str], screens: Sequence[TextScreen], tail: int | None = None
    ) -> list[list[ScreenedText]]:
        """The results of each screen for each text, `[texts][screens]`.

        Classifiers read the last `tail` characters of a text, or all of it where that is None.
        Raises TextTooLong, and GuardFailed where the encoder fails.
        """
        size = sum(map(len, texts))
        if size > MAX_CHARS:
            raise TextTooLong()
        patterns = [screen for screen in screens if screen.patterns is not None]
        if size <= _INLINE_CHARS or not patterns:
            results = self._match(patterns, texts)
        else:
            match = partial(self._match, patterns, texts)
            loop = asyncio.get_running_loop()
            results = await loop.run_in_executor(self._patterns_pool, match)
        heads = [screen for screen in screens if screen.head is not None]
        if heads and texts:
            tails = texts if tail is None else [text[-tail:] for text in texts]
            scores = await asyncio.gather(*map(self._scores, tails))
            for text_results, row in zip(results, scores, strict=True):
                text_results += [ScreenedText(screen, float(row[screen.head])) for screen in heads]
        return results

    def close(self) -> None:
        """Stop, and cancel what is pending."""
        if self._worker is not None:
            self._worker.cancel()
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._patterns_pool.shutdown(wait=False, cancel_futures=True)

    def _match(
        self, screens: Sequence[TextScreen], texts: Sequence[str]
    ) -> list[list[ScreenedText]]:
        """The matches of each pattern list in each text. Runs in any thread."""
        results: list[list[ScreenedText]] = []
        for text in texts:
            text_key = exact_key(text)
            text_results = []
            for screen in screens:
                assert screen.patterns is not None
                key = text_key + screen.name.encode()
                spans = self._spans.get(key)
                if spans is None:
                    matches = screen.patterns.find(text)
                    spans = tuple(Span(m.start, m.end, m.label) for m in matches)
                    self._spans.put(key, spans)
                text_results.append(ScreenedText(screen, 1.0 if spans else 0.0, spans))
            results.append(text_results)
        return results

    async def _scores(self, text: str) -> Scores:
        known = self.cache.get(exact_key(text))
        if known is not None:
            return known
        future: asyncio.Future[Scores] = asyncio.get_running_loop().create_future()
        self._pending.append(_PendingText(text, future))
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        return await future

    async def _work(self) -> None:
        while self._pending:
            pending = [entry for entry in self._pending if not entry.future.done()]
            batch, self._pending = pending[:MAX_BATCH], pending[MAX_BATCH:]
            if not batch:
                return
            try:
                texts = [entry.text for entry in batch]
                loop = asyncio.get_running_loop()
                scores = await loop.run_in_executor(self._pool, self._score, texts)
            except Exception as error:
                failed = GuardFailed(f"the screens' encoder failed: {error}")
                for entry in batch:
                    if not entry.future.done():
                        entry.future.set_exception(failed)
                continue
            for entry, row in zip(batch, scores, strict=True):
                future = entry.future
                if future.done():
                    continue
                if np.isfinite(row).all():
                    self.cache.put(exact_key(entry.text), row)
                    future.set_result(row)
                else:
                    future.set_exception(TextTooLong())

    def _score(self, texts: Sequence[str]) -> list[Scores]:
        """Scores `[heads]` of each text, the highest of its readings; NaN where one is too long.

        Runs in the worker's thread.
        """
        assert self._encoder is not None and self._heads is not None
        text_readings = [readings(text) for text in texts]
        keys = [read_key(reading_list) for reading_list in text_readings]
        rows = [self.cache.get(key) for key in keys]
        missing = [index for index, row in enumerate(rows) if row is None]
        flat = [reading for index in missing for reading in text_readings[index]]
        if flat:
            encoded = self._encoder.encode(flat)
            scores = encoded.highest(self._heads.scores(encoded.embeddings))
            start = 0
            for index in missing:
                end = start + len(text_readings[index])
                reading_scores, start = scores[start:end], end
                row = np.where(np.isnan(reading_scores).any(0), math.nan, reading_scores.max(0))
                rows[index] = row
                if np.isfinite(row).all():
                    self.cache.put(keys[index], row)
        return [row for row in rows if row is not None]
