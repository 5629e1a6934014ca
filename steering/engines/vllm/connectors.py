"""KV connectors beside guards: stores and senders of keys that other engines have computed.

Keys that come from a store have no gates here, so a guarded request could not be decided on. And
keys of a steered request must reach nobody else: the store that vLLM brings along finds them by
their tokens alone, without the salt that keeps them apart in the cache of prefixes. So guarded
requests neither load nor save, and other requests go on as they are. Both are decided in the
scheduler; workers do what its metadata say.

Only connectors that copy within the forward are followed. One that copies later has to see when the
blocks of a request that it saves go to another one, guarded or not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from typing import Any

from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory
from vllm.distributed.kv_transfer.kv_connector.v1 import KVConnectorRole

FOLLOWED = ("ExampleConnector",)
"""The connectors beside which guards are tested."""

LOCAL = "guard_local"
"""The extra argument of a request, set by the front end: whether its keys stay in this engine."""


def unfollowed_connector(config: Any) -> str | None:
    """The KV connector of a `VllmConfig` beside which guards are not tested."""
    transfer = config.kv_transfer_config
    if transfer is None:
        return None
    name, path = transfer.kv_connector, transfer.kv_connector_module_path
    if path is not None:
        return f"{path}.{name}"
    return None if name in FOLLOWED else str(name)


def patch() -> None:
    """Make the connectors of schedulers that are created from now on leave guarded requests out."""
    original = KVConnectorFactory.create_connector

    @wraps(original.__func__)
    def create_connector(cls: Any, config: Any, role: Any, *args: Any, **kwargs: Any) -> Any:
        connector = original.__func__(cls, config, role, *args, **kwargs)
        if role is KVConnectorRole.SCHEDULER:
            leave_out(connector)
        return connector

    KVConnectorFactory.create_connector = classmethod(create_connector)


def leave_out(connector: Any) -> None:
    """Hide the requests whose keys stay in this engine from a scheduler's connector."""
    hidden: set[str] = set()
    build = connector.build_connector_meta

    def build_connector_meta(scheduled: Any) -> Any:
        hidden.difference_update(scheduled.finished_req_ids)
        hidden.update(new.req_id for new in scheduled.scheduled_new_reqs if _stays(new))
        return build(_without(scheduled, hidden) if hidden else scheduled)

    connector.build_connector_meta = build_connector_meta
    for name, instead in (
        ("on_new_request", None),
        ("get_num_new_matched_tokens", (0, False)),
        ("update_state_after_alloc", None),
        ("request_finished", (False, None)),
    ):
        setattr(connector, name, _unless_it_stays(getattr(connector, name), instead))


def _unless_it_stays(original: Callable[..., Any], instead: object) -> Callable[..., Any]:
    @wraps(original)
    def method(request: Any, *args: Any, **kwargs: Any) -> Any:
        return instead if _stays(request) else original(request, *args, **kwargs)

    return method


def _stays(request: Any) -> bool:
    """Whether the keys of a request, or of its data for workers, stay in this engine."""
    params = request.sampling_params
    # True where nobody has said so: a front end without guards must not fill the store
    return bool(((params and params.extra_args) or {}).get(LOCAL, True))


def _without(scheduled: Any, hidden: set[str]) -> Any:
    """A copy of a `SchedulerOutput` without the `hidden` requests."""
    cached = scheduled.scheduled_cached_reqs
    shown = [i for i, name in enumerate(cached.req_ids) if name not in hidden]

    def some(values: Any) -> Any:
        # only pipeline parallelism has all of these lists
        return [values[i] for i in shown] if values else values

    lengths = {
        name: count for name, count in scheduled.num_scheduled_tokens.items() if name not in hidden
    }
    return replace(
        scheduled,
        scheduled_new_reqs=[
            new for new in scheduled.scheduled_new_reqs if new.req_id not in hidden
        ],
        scheduled_cached_reqs=replace(
            cached,
            req_ids=some(cached.req_ids),
            resumed_req_ids=cached.resumed_req_ids - hidden,
            new_token_ids=some(cached.new_token_ids),
            all_token_ids={
                name: tokens for name, tokens in cached.all_token_ids.items() if name not in hidden
            },
            new_block_ids=some(cached.new_block_ids),
            num_computed_tokens=some(cached.num_computed_tokens),
            num_output_tokens=some(cached.num_output_tokens),
        ),
        num_scheduled_tokens=lengths,
        total_num_scheduled_tokens=sum(lengths.values()),
    )
