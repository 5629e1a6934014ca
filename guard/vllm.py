"""The vLLM plugin: `GUARD_CONFIG=config.toml vllm serve MODEL`.

Found through the entry point group `vllm.general_plugins`, and called in every process of the
engine. Without GUARD_CONFIG it does nothing. A request's policy is `guard_policy` of its extra
arguments (`vllm_xargs` over HTTP, `SamplingParams.extra_args` offline), else the server's default.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

from guard.artifact import Artifact
from guard.config import Config, load_config
from guard.errors import ConfigError, GuardFailed, ModelError
from guard.kinds import kind_of

CONFIG, POLICY = "GUARD_CONFIG", "guard_policy"
TESTED = ("0.32",)
"""Releases of vLLM whose sources were read and that the tests run on."""


def register() -> None:
    """Guard what vLLM serves in this process. Raises GuardError where it must not be served."""
    path = os.environ.get(CONFIG)
    if not path:
        return
    import vllm

    if not vllm.__version__.startswith(tuple(f"{release}." for release in TESTED)):
        told = f"vLLM {vllm.__version__} is not supported: install {' or '.join(TESTED)}"
        raise ConfigError([f"{told}, or unset {CONFIG} to serve without guards"])
    config = load_config(path)
    policies = Policies.of(config)
    _front(policies)
    _workers(config, policies)


# -- the front end: which policy a request has ------------------------------------------------


@dataclass(frozen=True)
class Policies:
    """What requests may ask for: each policy's salt, None where it has no guards; the default."""

    salts: Mapping[str, str | None]
    default: str

    @classmethod
    def of(cls, config: Config) -> Policies:
        """Where the configuration has keys, which vLLM does not know, only what all of them may
        ask for. Raises ConfigError where the default is none of it, and GuardError for an artifact
        that cannot be read."""
        default = config.server.default_policy
        names = [name for name in config.policy_names if name == default or _askable(config, name)]
        artifacts = {guard.name: guard for guard in config.guards}
        salts: dict[str, str | None] = {}
        for name in names:
            policy = config.policy(name)
            read = [
                (own, Artifact.load(own.artifact))
                for own in map(artifacts.get, policy.guards)
                if own
            ]
            if policy.guards and all(kind_of(each.meta) == "pictures" for _, each in read):
                continue
            guards = [[each.digest, own.threshold, own.strength, own.recheck] for own, each in read]
            salts[name] = _digest([policy.action, guards]) if guards else None
        if default not in salts:
            told = f"the default policy {default!r} has no guard for a language model"
            raise ConfigError([f"{told}: it would leave every request unguarded"])
        return cls(salts, default)

    def asked(self, extra: Mapping[str, Any] | None) -> str:
        """The policy of a request. Raises ValueError for one that it may not have."""
        name = (extra or {}).get(POLICY, self.default)
        if not isinstance(name, str) or name not in self.salts:
            told = repr(name)[:80]
            raise ValueError(f"there is no policy {told} here, but {', '.join(self.salts)}")
        return name


def _askable(config: Config, policy: str) -> bool:
    return all(policy in {key.default_policy, *key.policies} for key in config.keys)


def salted(given: str | None, plan: str | None) -> str | None:
    """The salt of a request's cached keys: what it has `given`, and its plan.

    Whoever gives a salt cannot make it that of another plan: all that are given are hashed.
    """
    return None if given is None and plan is None else _digest([given, plan])


def _front(policies: Policies) -> None:
    from vllm.exceptions import VLLMValidationError
    from vllm.v1.engine.input_processor import InputProcessor

    from steering.engines.vllm.runner import require_followed

    own, made = InputProcessor.process_inputs, InputProcessor.__init__
    if hasattr(own, "guarded"):
        return

    @wraps(made)
    def __init__(self: Any, vllm_config: Any, *args: Any, **kwargs: Any) -> None:
        # here, since a runner that is not hooked would ask nobody
        require_followed(vllm_config)
        made(self, vllm_config, *args, **kwargs)

    @wraps(own)
    def process_inputs(self: Any, *args: Any, **kwargs: Any) -> Any:
        request = own(self, *args, **kwargs)
        params = request.sampling_params
        if params is None:
            return request
        try:
            policy = policies.asked(params.extra_args)
        except ValueError as error:
            raise VLLMValidationError(str(error), parameter=POLICY) from error
        request.cache_salt = salted(request.cache_salt, policies.salts[policy])
        return request

    process_inputs.guarded = True  # type: ignore[attr-defined]
    InputProcessor.process_inputs = process_inputs
    InputProcessor.__init__ = __init__
    _outputs()


def _outputs() -> None:
    """What was told of a request is `guard` of each completion, and of the output."""
    from vllm.v1.engine.output_processor import RequestState

    whole, one = RequestState.make_request_output, RequestState._new_completion_output

    @wraps(whole)
    def make_request_output(
        self: Any,
        new_token_ids: Any,
        pooling_output: Any,
        finish_reason: Any,
        stop_reason: Any,
        kv_transfer_params: Any = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        rest = dict(kv_transfer_params or {})
        self.guard = rest.pop("guard", None)
        result = whole(
            *(self, new_token_ids, pooling_output, finish_reason, stop_reason, rest or None),
            *args,
            **kwargs,
        )
        if result is not None and pooling_output is None:
            told = [getattr(each, "guard", None) for each in result.outputs]
            result.guard = told[0] if len(told) == 1 else told
            if any(told):
                # responses over HTTP take it from there
                result.kv_transfer_params = (result.kv_transfer_params or {}) | {
                    "guard": result.guard
                }
        return result

    @wraps(one)
    def _new_completion_output(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = one(self, *args, **kwargs)
        result.guard = self.guard
        if self.guard and self.guard["stop"]:
            result.finish_reason = "content_filter"
        return result

    RequestState.make_request_output = make_request_output
    RequestState._new_completion_output = _new_completion_output


# -- the workers: what guards do --------------------------------------------------------------


def _workers(config: Config, policies: Policies) -> None:
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    from guard.plan import Plans, Served
    from steering.engines.vllm import scheduler
    from steering.engines.vllm.runner import GuardedRunner, decoder_layers, surround
    from steering.fingerprint import checkpoint_fingerprint
    from steering.rows import Reading, RowGuard

    def loaded(runner: Any) -> GuardedRunner:
        model = runner.vllm_config.model_config
        try:
            layers = decoder_layers(runner.model)
            served = Served(
                fingerprint=checkpoint_fingerprint(_checkpoint(model)),
                depth=len(layers),
                width=model.get_hidden_size(),
                device=str(runner.device),
            )
        except ValueError as error:
            raise ModelError(f"{model.model} cannot be guarded: {error}") from error
        name = served_name(model)
        plans = Plans(config, served, name=name)

        class Resolved:
            def rows(self, extra: Mapping[str, Any]) -> Sequence[RowGuard]:
                return plans[policies.asked(extra)].rows()

            def told(
                self, extra: Mapping[str, Any], readings: Mapping[str, Reading]
            ) -> dict[str, Any]:
                plan = plans[policies.asked(extra)]
                verdict = plan.verdict(readings, request_id="", model=name, elapsed_ms=0.0)
                closed = verdict.outcome == "error" and plan.on_error == "closed"
                return verdict.as_dict() | {"stop": verdict.outcome == "blocked" or closed}

        for policy in policies.salts:
            plan = plans[policy]
            if plan.refuses:
                faults = "; ".join(f"{guard}: {why}" for guard, why in plan.broken.items())
                raise GuardFailed(f"policy {policy!r} cannot be applied to {name}: {faults}")
        return GuardedRunner(runner, plans.bank, Resolved())

    surround([GPUModelRunner, CPUModelRunner], loaded)
    scheduler.surround()


def served_name(model: Any) -> str:
    """By which name a model of vLLM's configuration is known to users."""
    name = model.served_model_name
    return str(name[0] if isinstance(name, list) else name or model.model)


def _checkpoint(model: Any) -> Path:
    folder = Path(model.model)
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download

    # vLLM has it by now
    return Path(snapshot_download(model.model, revision=model.revision, local_files_only=True))


def _digest(parts: Sequence[object]) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
