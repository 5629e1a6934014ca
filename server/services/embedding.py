"""What all services that give embeddings have in common: admission, bounds, verdicts."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from guard.errors import GuardError, PolicyUnfit, RequestError, TooManyRequests
from guard.plans.base import Plan
from guard.plans.selection import PolicyPlans
from guard.verdict import Verdict
from server.errors import EngineFailed
from server.services.interface import EmbeddedTexts, EmbeddingRequest

logger = logging.getLogger(__name__)

P = TypeVar("P", bound=Plan[Any])


@dataclass
class Places:
    """Requests for embeddings that are under way: `limit` at most, the others are refused."""

    limit: int
    taken: int = 0

    @contextmanager
    def take(self) -> Iterator[None]:
        """Raises TooManyRequests."""
        if self.taken >= self.limit:
            raise TooManyRequests(
                f"{self.taken} requests for embeddings are under way already: try again later",
                retry_after=1.0,
            )
        self.taken += 1
        try:
            yield
        finally:
            self.taken -= 1


def embedding_plan(plans: PolicyPlans[P], request: EmbeddingRequest, model: str) -> P:
    """The plan of the request's policy.

    Raises UnknownPolicy, and PolicyUnfit where the policy has guards that act on what a model
    generates: embeddings would pass them unread.
    """
    plan = plans.admitted(request.policy, request.config)
    plan.require_fit(model)
    # those that only observe pass nothing unread that anybody is promised
    acting = [guard.name for guard in plan.guards if not guard.shadow]
    if guards := [*acting, *plan.broken]:
        raise PolicyUnfit(
            f"the guards {', '.join(guards)} of the policy {request.policy!r} act on what a model "
            "generates, and embeddings are not generated: ask for a policy of screens alone",
            param="guard.policy",
        )
    return plan


async def embedded(
    plan: Plan[Any],
    request: EmbeddingRequest,
    model: str,
    record: Callable[[EmbeddingRequest, Verdict], None],
    work: Awaitable[tuple[NDArray[np.float32], int]],
) -> EmbeddedTexts:
    """The vectors and the number of tokens that `work` gives, with the verdict of the request,
    which passes to `record`, also where the request is cancelled. Raises GuardError, EngineFailed
    in place of any other error."""
    started = time.monotonic()

    def verdict() -> Verdict:
        elapsed_ms = (time.monotonic() - started) * 1000
        return plan.verdict({}, request_id=request.request_id, model=model, elapsed_ms=elapsed_ms)

    try:
        vectors, tokens = await work
    except RequestError:
        raise
    except (Exception, asyncio.CancelledError) as error:
        failed = replace(verdict(), outcome="error")
        record(request, failed)
        if isinstance(error, GuardError | asyncio.CancelledError):
            raise
        logger.exception("no embeddings for request %s", request.request_id)
        raise EngineFailed(
            "the engine failed while it ran this request; the server's log has why",
            verdict=failed,
        ) from error
    passed = verdict()
    record(request, passed)
    return EmbeddedTexts(vectors, tokens, passed)
