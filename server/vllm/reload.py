"""The configuration read anew while vLLM runs: by an admin's call, or from the program around it.

New requests have the new policies from the moment on at which all workers have them; those that
run end under the policy they came with. Where anything fails, all stays as it was.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterable, Sequence
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from guard.config.keys import KeyRing
from guard.config.schema import Config, KeyConfig, load_config
from guard.errors import GuardError
from guard.plans.revision import Revision, RevisionEntry
from server.auth import authenticate
from server.errors import error_response
from server.vllm import outputs
from server.vllm.policies import Policies
from server.vllm.workers import LOAD
from server.wire.replies import JSONReply


class ReloadFailed(GuardError):
    """The new configuration could not be loaded everywhere."""

    status = 409
    code = "reload_failed"


_lock = asyncio.Lock()
_numbers = itertools.count(1)
"""Of generations; one that failed leaves its number behind in workers that had it."""


async def reload(engine: Any) -> Policies:
    """Read the configuration of an `AsyncLLM` anew. Raises GuardError and changes nothing where it
    does not hold, or a worker cannot load it."""
    if engine._client_count > 1:
        raise ReloadFailed("several API servers share this engine: start them anew")
    async with _lock:
        policies, arguments = _next(engine)
        try:
            await engine.collective_rpc(LOAD, args=arguments)
        except Exception as error:
            raise ReloadFailed(f"the workers go on as before: {error}") from error
        return _swap(engine, policies)


def reload_now(engine: Any) -> Policies:
    """The same for an `LLMEngine`, `llm.llm_engine` offline."""
    policies, arguments = _next(engine)
    try:
        engine.collective_rpc(LOAD, args=arguments)
    except Exception as error:
        raise ReloadFailed(f"the workers go on as before: {error}") from error
    return _swap(engine, policies)


def _next(engine: Any) -> tuple[Policies, tuple[int, Sequence[str], Sequence[str]]]:
    """What follows, and what workers are told of it."""
    old: Policies = engine.input_processor.guard
    config, last = load_config(old.path), old.generation
    number = next(_numbers)
    fresh = Revision(config, last.served, last.model, number)
    policies = Policies(old.path, config, fresh, keyed=old.keyed)
    keep = {*_keys(last.entries.values()), *_carried(engine)}
    whole = [entry for entry in fresh.entries.values() if not entry.plan.refuses]
    return policies, (number, _keys(whole), sorted(keep))


def _swap(engine: Any, policies: Policies) -> Policies:
    old: Policies = engine.input_processor.guard
    policies.earlier = {*_keys(old.entries.values()), *_carried(engine)}
    outputs.expect(policies.entries.values(), forget=old.earlier - policies.earlier)
    engine.input_processor.guard = policies
    return policies


def _carried(engine: Any) -> Iterable[str]:
    states = engine.output_processor.request_states.values()
    return {state.watched.key for state in states if hasattr(state, "watched")}


def _keys(entries: Iterable[RevisionEntry]) -> list[str]:
    return [entry.key for entry in entries]


def admin_router(config: Config) -> APIRouter:
    """`POST /guard/reload`, for who has the key whose hash is `server.admin_hash`."""
    router = APIRouter()
    if config.server.admin_hash is None:
        return router
    ring = KeyRing([KeyConfig(hash=config.server.admin_hash, tenant="admin")])

    @router.post("/guard/reload")
    async def answer(request: Request) -> Response:
        try:
            authenticate(ring, request.headers)
            policies = await reload(request.app.state.engine_client)
        except GuardError as error:
            return error_response(error)
        return JSONReply(
            {"generation": policies.generation.number, "policies": [*policies.entries]}
        )

    return router
