"""vLLM's front end: which policy a request has, decided before anything is scheduled."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

from vllm.exceptions import VLLMValidationError
from vllm.v1.engine.input_processor import InputProcessor

from guard.config.schema import load_config
from guard.config.vllm_plugin import POLICY
from guard.plans.revision import Revision
from server.vllm.policies import Policies, salted
from server.vllm.served import served_by, served_name
from steering.engines.vllm.runner import PLAN, require_followed


def surround(path: Path, *, keyed: bool, opened: Callable[[Policies], None]) -> None:
    """Let vLLM's front ends ask their `Policies`, which are their `guard`; `opened` hears of
    each that is there."""
    own, made = InputProcessor.process_inputs, InputProcessor.__init__

    @wraps(made)
    def __init__(self: Any, vllm_config: Any, *args: Any, **kwargs: Any) -> None:
        # here, since a runner that is not hooked would ask nobody
        require_followed(vllm_config)
        config = load_config(path)
        generation = Revision(config, served_by(vllm_config), served_name(vllm_config))
        self.guard = Policies(path, config, generation, keyed=keyed)
        opened(self.guard)
        made(self, vllm_config, *args, **kwargs)

    @wraps(own)
    def process_inputs(self: Any, *args: Any, **kwargs: Any) -> Any:
        request = own(self, *args, **kwargs)
        params = request.sampling_params
        if params is None:
            return request
        try:
            entry = self.guard.asked(params.extra_args)
        except ValueError as error:
            raise VLLMValidationError(str(error), parameter=POLICY) from error
        # the request has parameters of its own by now, and no say in its plan
        params.extra_args = {**(params.extra_args or {}), PLAN: entry.key}
        request.cache_salt = salted(request.cache_salt, entry.salt)
        return request

    InputProcessor.process_inputs = process_inputs
    InputProcessor.__init__ = __init__
