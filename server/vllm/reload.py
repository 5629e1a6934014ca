"""Reloading the configuration while vLLM runs, by `POST /guard/reload` or from Python.

New requests get the new policies once all workers have loaded them; running requests end under the
policy they started with. Where anything fails, nothing changes.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterable, Sequence
from typing import Any

from guard.config.schema import load_config
from guard.errors import GuardError
from guard.plans.revision import Revision, RevisionEntry
from server.vllm import outputs
from server.vllm.policies import Policies
from server.vllm.workers import LOAD


class ReloadFailed(GuardError):
    """A worker could not load the new configuration."""

    status = 409
    code = "reload_failed"


_lock = asyncio.Lock()
_numbers = itertools.count(1)
"""Numbers of revisions. A failed reload uses up its number: workers may have loaded it."""


async def reload(engine: Any) -> Policies:
    """Reload the configuration of an `AsyncLLM`. Raises GuardError and changes nothing where the
    configuration is invalid or a worker cannot load it."""
    if engine._client_count > 1:
        raise ReloadFailed("several API servers share this engine: restart them instead")
    async with _lock:
        policies, arguments = _next(engine)
        try:
            await engine.collective_rpc(LOAD, args=arguments)
        except Exception as error:
            raise ReloadFailed(f"the workers keep their configuration: {error}") from error
        return _swap(engine, policies)


def reload_now(engine: Any) -> Policies:
    """`reload` for an `LLMEngine`, `llm.llm_engine` offline."""
    policies, arguments = _next(engine)
    try:
        engine.collective_rpc(LOAD, args=arguments)
    except Exception as error:
        raise ReloadFailed(f"the workers keep their configuration: {error}") from error
    return _swap(engine, policies)


def _next(engine: Any) -> tuple[Policies, tuple[int, Sequence[str], Sequence[str]]]:
    """The next policies, and the arguments with which workers load them."""
    old: Policies = engine.input_processor.guard
    config, last = load_config(old.path), old.revision
    number = next(_numbers)
    revision = Revision(config, last.served, last.model, number)
    policies = Policies(old.path, config, revision, keyed=old.keyed, earlier=old)
    keep = {*_keys(last.entries.values()), *_running_keys(engine)}
    applicable = [entry for entry in revision.entries.values() if not entry.plan.refuses]
    return policies, (number, _keys(applicable), sorted(keep))


def _swap(engine: Any, policies: Policies) -> Policies:
    old: Policies = engine.input_processor.guard
    policies.earlier_keys = {*_keys(old.entries.values()), *_running_keys(engine)}
    outputs.register(policies.entries.values(), forget=old.earlier_keys - policies.earlier_keys)
    engine.input_processor.guard = policies
    if old.screens is not None:
        old.screens.retire()
    return policies


def _running_keys(engine: Any) -> Iterable[str]:
    states = engine.output_processor.request_states.values()
    return {state.tracked.key for state in states if hasattr(state, "tracked")}


def _keys(entries: Iterable[RevisionEntry]) -> list[str]:
    return [entry.key for entry in entries]
