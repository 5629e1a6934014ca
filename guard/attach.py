"""Plain Python use: guards on a model or a pipeline that the caller holds, without a server."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from guard.config.checks import NO_POLICY
from guard.config.schema import Config, load_config
from guard.errors import ContentBlocked, GuardFailed, ModelError
from guard.plans.base import Plan
from guard.plans.language import LanguagePlans
from guard.verdict import Verdict
from steering.engines.errors import Unfollowed
from steering.engines.transformers.attachment import Attachment
from steering.engines.transformers.layers import UnknownArchitecture
from steering.fingerprint import UnreadableWeights

logger = logging.getLogger(__name__)


class Running(Protocol):
    """The guards on a model of any kind while a batch runs."""

    began: float
    fault: str | None
    """Why the batch ran without guards, under a policy that fails open."""

    @property
    def rows(self) -> int: ...

    def readings(self, row: int) -> Mapping[str, Any]: ...

    def flags(self) -> tuple[Sequence[bool], Sequence[bool]]:
        """By row: whether a guard has fired, and whether one has met NaN."""


class Attached:
    """The handle of `attached`: the verdicts on the last call of the model."""

    def __init__(self, plan: Plan[Any], model: str, blocks: Callable[[Running, int], bool]) -> None:
        self.policy = plan.policy
        self._plan, self._model, self._blocks = plan, model, blocks
        self._running: Running | None = None

    def verdicts(self) -> tuple[Verdict, ...]:
        """One verdict for each row of the last batch, `request_id` being row-0, row-1 ..."""
        running = self._running
        if running is None:
            return ()
        return tuple(self._verdict(running, row) for row in range(running.rows))

    def _verdict(self, running: Running, row: int) -> Verdict:
        plan = self._plan if running.fault is None else self._plan.failed(running.fault)
        return plan.verdict(
            running.readings(row),
            request_id=f"row-{row}",
            model=self._model,
            elapsed_ms=(time.monotonic() - running.began) * 1000,
        )

    def _check(self, running: Running) -> None:
        """After guards have read: raise where the policy ends the call."""
        self._running = running
        fired, invalid = running.flags()
        if self._plan.on_error == "closed" and any(invalid):
            raise GuardFailed(
                f"a guard of policy {self.policy!r} met NaN; the policy fails closed",
                verdict=self._verdict(running, invalid.index(True)),
            )
        for row, has_fired in enumerate(fired):
            if has_fired and self._blocks(running, row):
                raise ContentBlocked(
                    f"a guard of policy {self.policy!r} fired on row {row}",
                    verdict=self._verdict(running, row),
                )

    def _fail(self, reason: str) -> None:
        """At a call that guards cannot follow: raise, unless the policy fails open."""
        if self._plan.on_error == "closed":
            raise GuardFailed(reason)
        logger.warning("policy %s fails open: a call runs unguarded: %s", self.policy, reason)

    def _refuse(self, reason: str) -> None:
        """At a call that ends there, whatever the policy: raise."""
        raise GuardFailed(reason)


class _Hooks(Protocol):
    def remove(self) -> None: ...


@contextmanager
def attached(
    model: Any, policy: str | None = None, *, config: Config | Path | str = "config.toml"
) -> Iterator[Attached]:
    """Guard a model that the caller runs with a policy of `config` while the context lasts.

    `model` is a transformers causal language model, with vision or without (`model.generate`:
    batches are guarded row by row, with and without images; pad on the left), or a diffusers
    pipeline (`pipeline("a prompt")`: its prompts and prompt embeddings are guarded). `policy` None
    is the configuration's default, which must not be "none".
    Leaving the context
    removes every hook: the model is as before, bit for bit. While it lasts, what `torch.compile`
    has compiled runs as plain Python, in the whole process.

    Raises ConfigError, UnknownPolicy, PolicyUnfit, ModelError (an unknown architecture or
    pipeline, weights that cannot be read), GuardFailed (a guard cannot be applied, or a call cannot
    be followed; raised by that call) and, where the policy blocks, ContentBlocked for the whole
    batch. A pipeline's prompt that could not be refined is blocked too, even where the policy has a
    replacement. Under `on_error = "open"` a call of a language model that cannot be followed runs
    unguarded, and its verdicts say "error".
    """
    settings = config if isinstance(config, Config) else load_config(config)
    name = policy or settings.server.default_policy
    if policy is None and name == NO_POLICY:
        raise GuardFailed(
            f'no policy is named, and the configuration\'s default is "{NO_POLICY}": name one, or '
            "set default_policy in [server]"
        )
    settings.policy(name)
    attach = _to_pipeline if _is_pipeline(model) else _to_language_model
    try:
        handle, hooks = attach(model, settings, name)
    except Unfollowed as error:
        raise GuardFailed(str(error)) from error
    try:
        yield handle
    except BaseException as error:
        with suppress(Unfollowed):
            hooks.remove()
        if isinstance(error, Unfollowed):
            raise GuardFailed(str(error)) from error
        raise
    try:
        hooks.remove()
    except Unfollowed as error:
        raise GuardFailed(str(error)) from error


def _is_pipeline(model: Any) -> bool:
    # the caller of a pipeline has imported diffusers; no one else needs it
    diffusers = sys.modules.get("diffusers")
    return diffusers is not None and isinstance(model, diffusers.DiffusionPipeline)


def _to_language_model(model: Any, settings: Config, policy: str) -> tuple[Attached, _Hooks]:
    # what torch.compile has made of a model passes on to the model itself
    model = getattr(model, "_orig_mod", model)
    if getattr(model, "config", None) is None:
        raise ModelError(
            f"a {type(model).__name__} is no transformers model with a config and decoder layers: "
            "attach guards to the model itself, not to a wrapper or a traced copy"
        )
    served = _name(model)
    try:
        plans = LanguagePlans(settings, model, name=served)
        plan = plans[policy].outside("guard.attached")
        _require(plan, served)

        def blocks(running: Running, row: int) -> bool:
            return plan.blocks(running.readings(row))

        handle = Attached(plan, served, blocks)
        hooks = Attachment(model, plans.bank, plan.rows(), handle._check, handle._fail)
        return handle, hooks
    except (UnknownArchitecture, UnreadableWeights) as error:
        raise ModelError(str(error)) from error


def _to_pipeline(pipeline: Any, settings: Config, policy: str) -> tuple[Attached, _Hooks]:
    from steering.engines.diffusion.calls import unwrap_compiled

    hooks = ExitStack()
    try:
        hooks.callback(unwrap_compiled(pipeline))
        handle, attachment = _guarded_pipeline(pipeline, settings, policy)
        hooks.callback(attachment.remove)
    except BaseException:
        hooks.close()
        raise
    return handle, _Removable(hooks.close)


@dataclass(frozen=True)
class _Removable:
    remove: Callable[[], None]


def _guarded_pipeline(pipeline: Any, settings: Config, policy: str) -> tuple[Attached, _Hooks]:
    from guard.plans.images import ImagePlans
    from steering.engines.diffusion.attachment import PipelineAttachment
    from steering.engines.diffusion.families import family_of

    served = _name(pipeline)
    try:
        family = family_of(pipeline)
    except ValueError as error:
        raise ModelError(str(error)) from error
    plans = ImagePlans(settings, family, name=served)
    # the pipeline's call generates its own prompt: there is no replacement
    plan = plans[policy].last
    _require(plan, served)

    def blocks(running: Running, row: int) -> bool:
        return plan.decide(running.readings(row)) == "block"

    handle = Attached(plan, served, blocks)
    try:
        hooks = PipelineAttachment(family, plans.stacks, plan.rows(), handle._check, handle._refuse)
    except ValueError as error:
        raise GuardFailed(str(error)) from error
    return handle, hooks


def _require(plan: Plan[Any], served: str) -> None:
    """Raise where the policy cannot be applied to the model."""
    plan.require_no_texts()
    plan.require_fit(served)
    plan.require_whole()


def _name(model: Any) -> str:
    return str(getattr(model.config, "_name_or_path", "") or type(model).__name__)
