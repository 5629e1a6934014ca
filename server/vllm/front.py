"""vLLM's front end: the policy of each request, chosen before the request is scheduled."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from functools import wraps
from pathlib import Path
from typing import Any

from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.exceptions import VLLMValidationError
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.input_processor import InputProcessor

from guard.config.schema import load_config
from guard.config.vllm_plugin import POLICY
from guard.plans.revision import Revision, RevisionEntry
from server.vllm.http.call import HttpCall, current_call
from server.vllm.policies import Policies, require_guarded, salted
from server.vllm.served import served_by, served_name
from steering.engines.vllm.connectors import LOCAL
from steering.engines.vllm.runners.guarded import PLAN
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
        self.process_inputs_async = _with_call(self.process_inputs_async)

    @wraps(original_process)
    def process_inputs(
        self: Any, *args: Any, guard_call: HttpCall | None = None, **kwargs: Any
    ) -> Any:
        request = original_process(self, *args, **kwargs)
        params = request.sampling_params
        extra = params.extra_args if params is not None else None
        try:
            entry = _entry(self.guard, guard_call or current_call.get(), extra, params is None)
        except ValueError as error:
            raise VLLMValidationError(str(error), parameter=POLICY) from error
        if params is None:
            return request
        # by now the parameters are a copy; a plan that the client has given is overwritten
        ours = {PLAN: entry.key, LOCAL: entry.salt is not None}
        params.extra_args = {**(extra or {}), **ours}
        request.cache_salt = salted(request.cache_salt, entry.salt)
        return request

    InputProcessor.process_inputs = process_inputs
    InputProcessor.__init__ = __init__
    for kind in (ChatCompletionRequest, CompletionRequest):
        kind.to_beam_search_params = _beam_search(kind.to_beam_search_params)
        kind.to_sampling_params = _without_guard(kind.to_sampling_params)
    AsyncLLM.generate = _telling(AsyncLLM.generate)


def _entry(
    policies: Policies, call: HttpCall | None, extra: Mapping[str, Any] | None, pools: bool
) -> RevisionEntry:
    """The policy of a request within `call`. Raises ValueError."""
    named = POLICY in (extra or {})
    if call is None or (named and not call.is_named):
        entry = policies.entry_for(extra)
    elif named and (extra or {})[POLICY] != call.policy:
        raise ValueError("the request names two policies: give one")
    else:
        entry = policies.entry(call.policy)
    # a policy that the request has named where no middleware reads is not the one of the screens
    is_screened = call is not None and call.is_screened and entry.plan.policy == call.policy
    # the server around an engine without keys of its own screens for itself
    is_screened = is_screened or not policies.keyed
    require_guarded(entry, pools=pools, is_screened=is_screened)
    return entry


def _with_call(process_inputs_async: Any) -> Any:
    """Pass the call on to the thread in which raw prompts are processed."""

    @wraps(process_inputs_async)
    def process(*args: Any, **kwargs: Any) -> Any:
        return process_inputs_async(*args, guard_call=current_call.get(), **kwargs)

    return process


def _without_guard(original: Any) -> Any:
    """Over HTTP `guard` has been taken out of the body; in a batch from a file nobody reads it."""

    @wraps(original)
    def to_sampling_params(self: Any, *args: Any, **kwargs: Any) -> Any:
        if "guard" in (self.model_extra or {}):
            raise VLLMValidationError(
                f"'guard' is read over HTTP alone: name the policy in vllm_xargs.{POLICY}",
                parameter="guard",
            )
        return original(self, *args, **kwargs)

    return to_sampling_params


def _beam_search(original: Any) -> Any:
    """Beam search asks for its tokens without the extra arguments of the request, and so under the
    default policy: a request that names one is refused."""

    @wraps(original)
    def to_beam_search_params(self: Any, *args: Any, **kwargs: Any) -> Any:
        call = current_call.get()
        if POLICY in (self.vllm_xargs or {}) or (call is not None and call.is_named):
            raise VLLMValidationError(
                "beam search runs under the default policy: name none, or leave out "
                "use_beam_search",
                parameter=POLICY,
            )
        return original(self, *args, **kwargs)

    return to_beam_search_params


def _telling(original: Any) -> Any:
    """Tell the HTTP call of the verdicts of what is generated within it."""

    @wraps(original)
    def generate(self: Any, *args: Any, **kwargs: Any) -> Any:
        call = current_call.get()
        outputs = original(self, *args, **kwargs)
        params = kwargs.get("sampling_params", args[1] if len(args) > 1 else None)
        if call is None or params is None:
            return outputs
        return _collecting(outputs, call, call.add_prompt(params.n))

    return generate


async def _collecting(
    outputs: AsyncGenerator[Any, None], call: HttpCall, first: int
) -> AsyncGenerator[Any, None]:
    """`outputs` as they come; their verdicts are added to `call`, from choice `first` on."""
    async with aclosing(outputs) as source:
        async for output in source:
            for completion in output.outputs:
                if (verdict := getattr(completion, "guard", None)) is not None:
                    is_blocked = completion.finish_reason == "content_filter"
                    call.add(first + completion.index, verdict, is_blocked=is_blocked)
            yield output
