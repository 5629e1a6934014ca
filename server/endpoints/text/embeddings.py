"""`/v1/embeddings`: embeddings of texts, by language models and sentence encoders."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from numpy.typing import NDArray
from starlette.responses import Response

from server.endpoints.gateway import Gateway
from server.errors import InvalidParameter, RequestTimeout, UnsupportedParameter
from server.observe.exchange import exchange_of
from server.openapi.operation import ASKING, JSON, Operation
from server.services.interface import EmbeddedTexts, EmbeddingRequest, ModelInfo
from server.services.text_jobs import until_disconnect
from server.wire.replies import JSONReply
from server.wire.schemas.answers.embeddings import EmbeddingList
from server.wire.schemas.embeddings import MAX_INPUTS, EmbeddingsRequest

_OPERATION = Operation(
    body=EmbeddingsRequest, answers={JSON: EmbeddingList}, errors=ASKING, guarded=True
)
AT_ONCE = 65_536
"""Numbers of embeddings that the event loop writes as JSON itself: some milliseconds of work."""


def embeddings_router(gateway: Gateway) -> APIRouter:
    """The route of embeddings."""
    router = APIRouter()

    @router.post("/v1/embeddings", openapi_extra=_OPERATION.as_extra())
    async def create_embeddings(request: Request) -> Response:
        """Embeddings of texts, or of token ids."""
        admission = await gateway.admit(request, EmbeddingsRequest, gateway.embedding_service)
        body, service = admission.body, admission.service
        _check(body, service.info)
        row = EmbeddingRequest(
            request_id=admission.request_id,
            inputs=body.input,
            policy=admission.policy,
            tenant=admission.tenant,
            record_id=admission.record_id,
            config=admission.config,
        )
        try:
            async with asyncio.timeout_at(admission.deadline):
                made = await until_disconnect(request.receive, service.embed(row))
        except TimeoutError:
            raise RequestTimeout("The answer took longer than this server allows.") from None
        gateway.metrics.count_tokens(service.info.name, made.prompt_tokens, 0)
        exchange = exchange_of(request)
        exchange.spend(made.prompt_tokens)
        exchange.outcome = made.verdict.outcome
        more = exchange.guard(made.verdict)
        if made.vectors.size <= AT_ONCE:
            return JSONReply(_body(body, made) | more)
        return await asyncio.to_thread(lambda: JSONReply(_body(body, made) | more))

    return router


def _check(body: EmbeddingsRequest, info: ModelInfo) -> None:
    if len(body.input) > MAX_INPUTS:
        raise InvalidParameter(
            f"'input' has {len(body.input)} items; a request takes at most {MAX_INPUTS}.",
            param="input",
        )
    if body.dimensions not in {None, info.embedding_width}:
        raise UnsupportedParameter(
            f"The model {info.name!r} gives embeddings of {info.embedding_width} numbers, and was "
            "not trained to have them cut: leave 'dimensions' out.",
            param="dimensions",
        )


def _body(body: EmbeddingsRequest, made: EmbeddedTexts) -> dict[str, Any]:
    encode = _base64 if body.encoding_format == "base64" else _numbers
    return {
        "object": "list",
        "data": [
            {"object": "embedding", "index": index, "embedding": encode(vector)}
            for index, vector in enumerate(made.vectors)
        ],
        "model": body.model,
        "usage": {"prompt_tokens": made.prompt_tokens, "total_tokens": made.prompt_tokens},
    }


def _numbers(vector: NDArray[np.float32]) -> list[float]:
    return [*map(float, vector)]


def _base64(vector: NDArray[np.float32]) -> str:
    """Little-endian float32, as OpenAI's clients read it."""
    return base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii")
