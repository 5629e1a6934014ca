"""vLLM's model runner with guards: which rows a forward holds, told to the table before it runs.

Written against the V1 runner (`vllm/v1/worker/gpu_model_runner.py`), whose methods it surrounds:

- `load_model`: hooks behind the decoder layers, before anything is compiled;
- `initialize_kv_cache`: the table, as large as the cache of keys;
- `_update_states`: requests that have ended or are put off leave their rows;
- `_prepare_inputs`: the forward's stretches, by request id and token counts;
- `execute_model`: what runs outside of it (profiling, warming up) is nobody's business;
- `sample_tokens`: its output takes along what was decided.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn
from vllm.v1.kv_cache_interface import FullAttentionSpec

from steering.bank import Bank
from steering.engines.vllm.tap import Tap
from steering.packed import Packed, PackedTable
from steering.rows import Reading, RowGuard


class Policies(Protocol):
    """What the plugin knows of policies, by the extra arguments of a request."""

    def rows(self, extra: Mapping[str, Any]) -> Sequence[RowGuard]:
        """The guards that it carries."""

    def told(self, extra: Mapping[str, Any], readings: Mapping[str, Reading]) -> dict[str, Any]:
        """What is told of them, as JSON has it, by what they have read; with a `stop` that says
        whether the request is to end."""


class Unsupported(ValueError):
    """An engine that guards cannot follow."""


def require_followed(config: Any) -> None:
    """Raise Unsupported for an engine's configuration that guards were not seen to work under."""
    parallel, runner = config.parallel_config, config.model_config.runner_type
    refused = {
        "speculative decoding": config.speculative_config is not None,
        "several workers": parallel.world_size > 1 or parallel.data_parallel_size > 1,
        "LoRA": config.lora_config is not None,
        "a KV connector": config.kv_transfer_config is not None,
        "model runner V2 (VLLM_USE_V2_MODEL_RUNNER=0 takes V1)": config.use_v2_model_runner,
        f"the runner {runner!r}": runner != "generate",
        "CUDA graphs (--enforce-eager leaves them out)": (
            config.device_config.device_type != "cpu" and not config.model_config.enforce_eager
        ),
    }
    if found := [name for name, there in refused.items() if there]:
        raise Unsupported(f"guards do not go together with {', '.join(found)} yet")


def decoder_layers(model: nn.Module) -> Sequence[nn.Module]:
    """Of a vLLM model, in order. Raises Unsupported."""
    inner = getattr(model, "model", None)
    layers = getattr(inner, "layers", None)
    if not isinstance(layers, nn.ModuleList):
        raise Unsupported(f"the decoder layers of a {type(model).__name__} are not found")
    return list(layers)


class GuardedRunner:
    """What guards keep for one model runner."""

    def __init__(self, runner: Any, bank: Bank, policies: Policies) -> None:
        """Raises Unsupported."""
        require_followed(runner.vllm_config)
        self._runner, self._bank, self._policies = runner, bank, policies
        self._tap = Tap()
        self._tap.install(decoder_layers(runner.model), bank.layers)
        self._table: PackedTable | None = None
        self._row: dict[str, int] = {}
        self._free: list[int] = []
        self._decided: list[str] = []
        """Requests about which the last forward may have decided something."""

    def allocate(self) -> None:
        """The table, beside the cache of keys. Raises Unsupported for a cache of another kind."""
        config = self._runner.kv_cache_config
        if len(config.kv_cache_groups) != 1 or not isinstance(
            config.kv_cache_groups[0].kv_cache_spec, FullAttentionSpec
        ):
            raise Unsupported("only models of which all layers attend to all tokens are guarded")
        capacity = self._runner.max_num_reqs
        self._block = config.kv_cache_groups[0].kv_cache_spec.block_size
        self._table = PackedTable(self._bank, capacity, config.num_blocks * self._block)
        self._free = list(range(capacity))

    def update(self, scheduled: Any) -> None:
        """Requests that have ended leave their rows, and so do those that were preempted, which
        come in anew."""
        for name in (*scheduled.finished_req_ids, *(scheduled.preempted_req_ids or ())):
            if (row := self._row.pop(name, None)) is not None and self._table is not None:
                self._table.remove(row)
                self._free.append(row)
        if self._table is not None:
            for source, target in scheduled.kv_cache_block_copies or ():
                self._table.copy(self._stretch(source), self._stretch(target))

    def begin(self, scheduled: Any, lengths: Any) -> None:
        """Tell the table what the forward holds."""
        table = self._table
        if table is None or not len(self._bank):
            return
        batch = self._runner.input_batch
        names = batch.req_ids
        rows = [self._enter(name) for name in names]
        prompts = batch.num_prompt_tokens[: len(names)].astype(np.int64)
        computed = batch.num_computed_tokens_cpu[: len(names)].astype(np.int64)
        first = computed + 1 - prompts
        blocks, size = batch.block_table[0].block_table.np, batch.block_table[0].block_size

        def places(row: Any, token: Any) -> torch.Tensor:
            found = blocks[row, token // size].astype(np.int64) * size + token % size
            return torch.from_numpy(found).to(self._bank.device)

        at = np.arange(len(names)).repeat(lengths)
        starts = lengths.cumsum() - lengths
        token = np.arange(len(at)) + (computed - starts).repeat(lengths)
        decided = {
            rows[i]: places(i, np.arange(prompts[i]))
            for i in np.flatnonzero((first <= 0) & (first + lengths > 0))
        }
        table.begin(Packed(rows, lengths, first, places(at, token), decided))
        self._tap.table = table
        self._decided = [names[i] for i in np.flatnonzero(table.decides(rows, first + lengths - 1))]

    def end(self) -> None:
        """The forward is over."""
        self._tap.table = None

    def tell(self, output: Any) -> None:
        """Give the output of a forward what its guards have decided."""
        told = {name: self._told(name) for name in self._decided if name in self._row}
        self._decided = []
        if told:
            # an output on its way from the device has it inside
            getattr(output, "_model_runner_output", output).guard = told

    def _told(self, name: str) -> dict[str, Any]:
        assert self._table is not None
        return self._policies.told(self._extra(name), self._table.readings(self._row[name]))

    def _extra(self, name: str) -> Mapping[str, Any]:
        params = self._runner.requests[name].sampling_params
        return (params and params.extra_args) or {}

    def _enter(self, name: str) -> int:
        if name not in self._row:
            assert self._table is not None
            row = self._row[name] = self._free.pop()
            self._table.add(row, self._policies.rows(self._extra(name)))
        return self._row[name]

    def _stretch(self, block: int) -> slice:
        return slice(block * self._block, (block + 1) * self._block)


def surround(runners: Sequence[type], loaded: Callable[[Any], GuardedRunner | None]) -> None:
    """Guard what `runners`, classes of V1 model runners, run; `loaded` is asked for each whose
    model is there. Does nothing the second time."""
    for kind in runners:
        for name, around in _AROUND.items():
            own = vars(kind).get(name)
            if own is not None and not hasattr(own, "guarded"):
                setattr(kind, name, around(own, loaded))


def _around_load(own: Any, loaded: Any) -> Any:
    @wraps(own)
    def load_model(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = own(self, *args, **kwargs)
        if getattr(self, "guarded", None) is None:
            self.guarded = loaded(self)
        return result

    load_model.guarded = True  # type: ignore[attr-defined]
    return load_model


def _surrounding(
    before: Callable[[GuardedRunner, tuple[Any, ...]], None] | None = None,
    after: Callable[[GuardedRunner, tuple[Any, ...], Any], None] | None = None,
) -> Any:
    def around(own: Any, _loaded: Any) -> Any:
        @wraps(own)
        def method(self: Any, *args: Any, **kwargs: Any) -> Any:
            guarded: GuardedRunner | None = getattr(self, "guarded", None)
            if guarded is None:
                return own(self, *args, **kwargs)
            if before:
                before(guarded, args)
            try:
                result = own(self, *args, **kwargs)
            except BaseException:
                guarded.end()
                raise
            if after:
                after(guarded, args, result)
            return result

        method.guarded = True  # type: ignore[attr-defined]
        return method

    return around


_AROUND: Mapping[str, Any] = {
    "load_model": _around_load,
    "initialize_kv_cache": _surrounding(after=lambda guarded, _args, _result: guarded.allocate()),
    "_update_states": _surrounding(before=lambda guarded, args: guarded.update(args[0])),
    "_prepare_inputs": _surrounding(after=lambda guarded, args, _result: guarded.begin(*args[:2])),
    "execute_model": _surrounding(after=lambda guarded, _args, _result: guarded.end()),
    "sample_tokens": _surrounding(after=lambda guarded, _args, result: guarded.tell(result)),
}
