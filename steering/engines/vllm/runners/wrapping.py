"""How methods of vLLM's model runners are wrapped: calls of the guards before and after them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

from steering.engines.vllm.supported import adapt

Around = Callable[[Any, Callable[[Any], Any]], Any]
"""Makes a wrapper of a method, given the function that makes the guards of a runner."""

Arounds = Mapping[str, Around]


def surround(runner: type, arounds: Arounds, loaded: Callable[[Any], Any]) -> None:
    """Wrap methods of a class of model runners; `loaded` gives the guards of a runner whose model
    is loaded."""
    for name, around in arounds.items():
        method = vars(runner).get(name)
        if method is not None:
            setattr(runner, name, around(method, loaded))


def around_load(original: Any, loaded: Callable[[Any], Any]) -> Any:
    """Around `load_model`: once it has run, the runner has its guards as `guarded`."""

    @wraps(original)
    def load_model(self: Any, *args: Any, **kwargs: Any) -> Any:
        first = getattr(self, "guarded", None) is None
        if first:
            adapt(self.vllm_config)
        result = original(self, *args, **kwargs)
        if first:
            self.guarded = loaded(self)
        return result

    return load_model


def surrounding(
    before: Callable[[Any, tuple[Any, ...]], None] | None = None,
    after: Callable[[Any, tuple[Any, ...], Any], Any] | None = None,
    *,
    replaces: bool = False,
) -> Around:
    """Around a method of a runner with guards: `before` is called with them and the method's
    positional arguments, `after` with its result too, which it `replaces` or not."""

    def around(original: Any, _loaded: Any) -> Any:
        @wraps(original)
        def method(self: Any, *args: Any, **kwargs: Any) -> Any:
            guarded = getattr(self, "guarded", None)
            if guarded is None:
                return original(self, *args, **kwargs)
            if before:
                before(guarded, args)
            try:
                result = original(self, *args, **kwargs)
            except BaseException:
                guarded.end()
                raise
            if after:
                told = after(guarded, args, result)
                result = told if replaces else result
            return result

        return method

    return around


COMMON: Arounds = {
    "load_model": around_load,
    "get_kv_cache_spec": surrounding(
        after=lambda guarded, _args, result: guarded.keep_all_tokens(result)
    ),
    "initialize_kv_cache": surrounding(after=lambda guarded, _args, _result: guarded.allocate()),
    "_dummy_run": surrounding(before=lambda guarded, _args: guarded.idle()),
    "capture_model": surrounding(
        before=lambda guarded, _args: guarded.capture(),
        after=lambda guarded, _args, _result: guarded.end(),
    ),
    "execute_model": surrounding(
        before=lambda guarded, args: guarded.receive(args[1] if len(args) > 1 else None),
        after=lambda guarded, _args, result: guarded.end(result),
    ),
    "sample_tokens": surrounding(
        after=lambda guarded, _args, result: guarded.tell(result), replaces=True
    ),
}
"""The seams that both model runners have:

- `load_model`: the operator is installed behind the decoder layers, before anything is compiled;
- `get_kv_cache_spec`: where all layers slide, some keep the keys of all tokens;
- `initialize_kv_cache`: allocates the table, as large as the cache of keys, of which V2 makes a
  small one to profile with;
- `_dummy_run`, `capture_model`: nobody is guarded in them;
- `execute_model`: guards act only inside it, so not while vLLM profiles or warms up;
- `sample_tokens`: the guards' reports follow its output.
"""
