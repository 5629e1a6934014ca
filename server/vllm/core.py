"""vLLM's engine core with guards: a request that no guarded front end has seen is refused alone."""

from __future__ import annotations

from functools import wraps
from typing import Any

from vllm.v1.engine.core import EngineCore

from steering.engines.vllm.runners.guarded import PLAN


def patch() -> None:
    """Make the engine core refuse requests without a plan before they are scheduled."""
    original = EngineCore.preprocess_add_request

    @wraps(original)
    def preprocess_add_request(self: Any, request: Any) -> Any:
        params = request.sampling_params
        if params is not None and PLAN not in (params.extra_args or {}):
            raise ValueError(
                "this request comes from a front end without guards, so no policy is known for it: "
                "set GUARD_CONFIG in every process of vLLM, and do not use its Rust front end"
            )
        return original(self, request)

    EngineCore.preprocess_add_request = preprocess_add_request
