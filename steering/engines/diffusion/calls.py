"""The call of a caller's pipeline, from outside: what begins and ends it, what it runs, and what it
was asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from steering.engines.diffusion.families import Family
from steering.engines.diffusion.sampling.samplers import Sampler
from steering.engines.diffusion.sampling.trajectories import Trajectories, Trajectory
from steering.engines.errors import Unfollowed

_CALLBACK = "callback_on_step_end"


def ignore(_reason: str) -> None:
    """A `failed` that leaves Unfollowed as it is."""


def unwrap_compiled(pipeline: Any) -> Callable[[], None]:
    """Put the modules themselves in the place of those that `torch.compile` has wrapped; returns
    the function that restores them."""
    parts = vars(pipeline)
    wrapped = {
        name: part for name, part in parts.items() if getattr(part, "_orig_mod", None) is not None
    }
    parts.update({name: part._orig_mod for name, part in wrapped.items()})
    return lambda: parts.update(wrapped)


class WatchedCalls:
    """Watches each call of a pipeline until `remove`.

    `ended` is called after a call that has not failed, and `failed` with the reason of every
    Unfollowed that one raises, of which it makes the caller's error. The call is an attribute of
    the class, so the pipeline gets a subclass of its own, with the same name.
    """

    def __init__(
        self, pipeline: Any, ended: Callable[[], None], failed: Callable[[str], None]
    ) -> None:
        self._pipeline, self._kind = pipeline, type(pipeline)
        call = self._kind.__call__
        known = signature(call)

        @wraps(call)
        def watched(pipeline: Any, *args: Any, **kwargs: Any) -> Any:
            with translated(failed):
                bound = known.bind(pipeline, *args, **kwargs)
                callback = bound.arguments.get(_CALLBACK)
                if callback is not None:
                    bound.arguments[_CALLBACK] = _watched(callback)
                    if hasattr(callback, "tensor_inputs"):
                        bound.arguments[f"{_CALLBACK}_tensor_inputs"] = callback.tensor_inputs
                result = call(*bound.args, **bound.kwargs)
                ended()
            return result

        names = ("__module__", "__qualname__", "__doc__")
        about = {name: getattr(self._kind, name) for name in names}
        pipeline.__class__ = type(
            self._kind.__name__, (self._kind,), {**about, "__call__": watched}
        )

    def remove(self) -> None:
        """Restore the pipeline's class."""
        self._pipeline.__class__ = self._kind


@contextmanager
def translated(failed: Callable[[str], None]) -> Iterator[None]:
    """Call `failed` with the reason of an Unfollowed that is raised inside."""
    try:
        yield
    except Unfollowed as error:
        failed(str(error))
        raise


def _watched(callback: Callable[..., Any]) -> Callable[..., Any]:
    """A callback between steps that may change latents, but no embeddings: nothing reads them."""

    def watched(pipeline: Any, step: int, timestep: Any, given: Mapping[str, Any]) -> Any:
        before = {name: (value, _version(value)) for name, value in given.items()}
        result = callback(pipeline, step, timestep, given)
        after = {**given, **(result or {})}
        for name, value in after.items():
            known, version = before.get(name, (None, None))
            if name != "latents" and (value is not known or _version(value) != version):
                raise Unfollowed(f"a callback that changes {name} cannot be guarded: leave it out")
        return result

    return watched


def _version(value: Any) -> int | None:
    """How often a tensor was changed in place; None where that is not counted."""
    if not isinstance(value, Tensor) or value.is_inference():
        return None
    return value._version


def trajectory_of_call(family: Family, sampler: Sampler) -> Trajectory:
    """The trajectory of the running call in the tables of `sampler`. Raises Unfollowed for one that
    these do not have."""
    scheduler = family.scheduler
    if scheduler.num_inference_steps is None:
        raise Unfollowed(
            "the denoiser was run outside of a call, which cannot be guarded: attach guards to a "
            "pipeline once"
        )
    try:
        trajectory = Trajectories(sampler, family).find(int(scheduler.num_inference_steps), None)
    except ValueError as error:
        raise Unfollowed(str(error)) from error
    timesteps = scheduler.timesteps.double().cpu()
    known = trajectory.schedule.timestep.double().cpu()
    if len(timesteps) != len(known) or not torch.allclose(timesteps, known, atol=1e-2):
        raise Unfollowed(
            "timesteps or sigmas that a call sets itself cannot be guarded: leave them out"
        )
    return trajectory


def guidance_scale(
    family: Family, unconditional: Tensor, conditional: Tensor, guided: Tensor
) -> Tensor:
    """The guidance scale of the running call, `[rows]`: the pipeline's own, or that by which the
    `guided [rows, ...]` prediction was made of the other two."""
    kept = family.default_guidance == "guidance_scale"
    known = getattr(family.pipeline, "guidance_scale", None) if kept else None
    if known:
        return torch.full((len(guided),), float(known), device=guided.device)
    # some pipelines do not keep it: it is the projection of the output on the guidance
    along = (conditional - unconditional).flatten(1)
    reached = (guided.float() - unconditional).flatten(1)
    return (reached * along).sum(1) / along.square().sum(1).clamp(min=1e-12)
