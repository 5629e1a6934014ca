"""vLLM's front end: the policy of each request, chosen before the request is scheduled."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.exceptions import VLLMValidationError
from vllm.v1.engine.input_processor import InputProcessor

from guard.config.schema import load_config
from guard.config.vllm_plugin import POLICY
from guard.plans.revision import Revision
from server.vllm.policies import Policies, require_guarded, salted
from server.vllm.served import served_by, served_name
from steering.engines.vllm.runner import PLAN
from steering.engines.vllm.supported import require_followed


def patch(path: Path, *, keyed: bool, on_open: Callable[[Policies], None]) -> None:
    """Give each input processor of vLLM its `Policies`, as attribute `guard`, and make it choose
    the policy of every request. `on_open` is called with each new `Policies`."""
    original_process, original_init = InputProcessor.process_inputs, InputProcessor.__init__

    @wraps(original_init)
    def __init__(self: Any, vllm_config: Any, *args: Any, **kwargs: Any) -> None:
        # checked here: a model runner without hooks would run every request unguarded
        require_followed(vllm_config)
        config = load_config(path)
        revision = Revision(config, served_by(vllm_config), served_name(vllm_config))
        self.guard = Policies(path, config, revision, keyed=keyed)
        on_open(self.guard)
        original_init(self, vllm_config, *args, **kwargs)

    @wraps(original_process)
    def process_inputs(self: Any, *args: Any, **kwargs: Any) -> Any:
        request = original_process(self, *args, **kwargs)
        params = request.sampling_params
        try:
            entry = self.guard.entry_for(params.extra_args if params is not None else None)
            require_guarded(entry, pools=params is None)
        except ValueError as error:
            raise VLLMValidationError(str(error), parameter=POLICY) from error
        if params is None:
            return request
        # by now the parameters are a copy; a plan that the client has given is overwritten
        params.extra_args = {**(params.extra_args or {}), PLAN: entry.key}
        request.cache_salt = salted(request.cache_salt, entry.salt)
        return request

    InputProcessor.process_inputs = process_inputs
    InputProcessor.__init__ = __init__
    for kind in (ChatCompletionRequest, CompletionRequest):
        kind.to_beam_search_params = _beam_search(kind.to_beam_search_params)


def _beam_search(original: Any) -> Any:
    """Beam search asks for its tokens without the extra arguments of the request, and so under the
    default policy: a request that names one is refused."""

    @wraps(original)
    def to_beam_search_params(self: Any, *args: Any, **kwargs: Any) -> Any:
        if POLICY in (self.vllm_xargs or {}):
            raise VLLMValidationError(
                "beam search runs under the default policy: leave out "
                f"{POLICY!r}, or use_beam_search",
                parameter=POLICY,
            )
        return original(self, *args, **kwargs)

    return to_beam_search_params
