"""Embeddings of texts by a served language model, between the steps of its running batch."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steering.engines.transformers.embeddings import StateEmbedder

Tokens = tuple[int, ...]
Vectors = NDArray[np.float32]


class EmbeddingBatches:
    """Embeds texts in forwards of at most `tokens` tokens, padding included.

    Running rows wait for one forward at most: a longer text is read in parts, and requests take
    turns.
    """

    def __init__(self, embedder: StateEmbedder, *, tokens: int) -> None:
        self._embedder = embedder
        self._tokens = tokens
        self._turn = asyncio.Lock()

    async def embed(
        self, texts: Sequence[Tokens], between: Callable[[Callable[[], None]], Future[None]]
    ) -> tuple[Vectors, int]:
        """`[len(texts), width]`, of length one, and the number of tokens; `between` has the
        engine's thread call something between two steps. Raises what that raises, and
        ServiceStopped."""
        made: dict[int, Vectors] = {}
        for batch in batches([len(text) for text in texts], self._tokens):
            if len(texts[batch[0]]) > self._tokens:
                made[batch[0]] = (await self._in_parts(texts[batch[0]], between))[0]
                continue
            work = partial(self._embedder.embed, [texts[row] for row in batch])
            made |= zip(batch, await self._run(work, between), strict=True)
        return np.stack([made[row] for row in range(len(texts))]), sum(map(len, texts))

    async def _in_parts(
        self, tokens: Tokens, between: Callable[[Callable[[], None]], Future[None]]
    ) -> Vectors:
        text = self._embedder.begin(tokens)
        while True:
            work = partial(self._embedder.read, text, self._tokens)
            vectors: Vectors | None = await self._run(work, between)
            if vectors is not None:
                return vectors

    async def _run(
        self,
        work: Callable[[], Any],
        between: Callable[[Callable[[], None]], Future[None]],
    ) -> Any:
        result: list[Any] = []
        # one forward of embeddings between two steps, whoever waits for one
        async with self._turn:
            await asyncio.wrap_future(between(lambda: result.append(work())))
        return result[0]


def batches(lengths: Sequence[int], most: int) -> Iterator[list[int]]:
    """Rows of similar lengths together, no more than `most` tokens with their padding, a longer one
    alone."""
    batch: list[int] = []
    for row in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and lengths[row] * (len(batch) + 1) > most:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch
