"""The call of a caller's pipeline, from outside: what begins and ends it, and what it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from inspect import signature
from typing import Any

from torch import Tensor

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
