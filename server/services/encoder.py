"""A served sentence encoder: embeddings of texts, and nothing else."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from classifiers.text.encoder.model import MOST_TOKENS, TextEncoder
from guard.config.schema import Config, ModelConfig
from guard.errors import ContextExceeded, ServiceStopped
from guard.models.kind_checks import source_of
from guard.plans.encoders import EncoderPlan, encoder_plans
from guard.plans.selection import PolicyPlans
from guard.verdict import Verdict
from server.services.embedding import Places, embedded, embedding_plan
from server.services.following import FollowsPolicies
from server.services.interface import EmbeddedTexts, EmbeddingRequest, EncoderInfo
from server.services.prompts import token_ids

Record = Callable[[EmbeddingRequest, Verdict], None]


class EncoderService(FollowsPolicies[PolicyPlans[EncoderPlan], EncoderInfo]):
    """An EmbeddingService over a sentence encoder in ONNX Runtime.

    A text longer than the encoder's window has the mean of the embeddings of its windows, each
    weighted by its tokens, scaled to length one.
    """

    def __init__(
        self,
        info: EncoderInfo,
        encoder: TextEncoder,
        plans: PolicyPlans[EncoderPlan],
        *,
        queue_limit: int,
        record: Record,
    ) -> None:
        self.info = info
        self._encoder, self._plans, self._record = encoder, plans, record
        self._places = Places(queue_limit)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"encoder {info.name}")
        self._stopped = False

    async def embed(self, request: EmbeddingRequest) -> EmbeddedTexts:
        if self._stopped:
            raise ServiceStopped("the server is stopping: try again in a moment")
        plan = embedding_plan(self._plans, request, self.info.name)
        with self._places.take():
            work = asyncio.get_running_loop().run_in_executor(self._thread, self._vectors, request)
            return await embedded(plan, request, self.info.name, self._record, work)

    def ready(self) -> bool:
        return not self._stopped

    def queued(self) -> int:
        return self._places.taken

    def close(self) -> None:
        self._stopped = True
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _vectors(self, request: EmbeddingRequest) -> tuple[NDArray[np.float32], int]:
        texts = token_ids(request.inputs, self._encoder.tokens, self._encoder.vocabulary)
        for number, text in enumerate(texts):
            if len(text) > MOST_TOKENS:
                raise ContextExceeded(
                    f"input[{number}] has {len(text)} tokens; this model takes at most "
                    f"{MOST_TOKENS}: send it in parts"
                )
        windows = self._encoder.windows_of(texts)
        lengths = np.array([len(ids) for ids in windows.ids], np.float32)
        vectors = np.zeros((len(texts), self._encoder.width), np.float32)
        np.add.at(vectors, windows.text, self._encoder.embed(windows.ids) * lengths[:, None])
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors / np.maximum(norms, 1e-12), sum(map(len, texts))


def encoder_service(config: Config, settings: ModelConfig, record: Record) -> EncoderService:
    """Raises GuardError, and ValueError where the encoder is missing or was altered."""
    encoder = TextEncoder.load(source_of(settings.source, "text"))
    plans = encoder_plans(config, settings.name)
    info = EncoderInfo(
        name=settings.name,
        engine=settings.engine,
        created=int(time.time()),
        policies=plans.usable,
        embedding_width=encoder.width,
        max_context=MOST_TOKENS,
    )
    return EncoderService(
        info, encoder, plans, queue_limit=config.server.queue_limit, record=record
    )
