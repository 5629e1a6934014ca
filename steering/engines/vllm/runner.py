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
from dataclasses import dataclass
from functools import wraps
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from vllm.config import CUDAGraphMode
from vllm.sequence import IntermediateTensors
from vllm.v1.kv_cache_interface import FullAttentionSpec

from steering.engines.vllm.tap import Tap
from steering.hidden.bank import HiddenBank
from steering.hidden.packed import PackedTable
from steering.hidden.packed_forward import PackedForward
from steering.hidden.rows import Reading, RowGuard

PLAN = "guard_plan"
"""Of a request's extra arguments, put there by the front end: the key of its `RowPlan`."""

CARRIED = "guard_gates"
"""Among the tensors that go from one pipeline stage to the next."""


@dataclass(frozen=True)
class RowPlan:
    """What a request carries.

    `blocks`: a guard that fires ends the request; `closed`: so does one that could not read.
    """

    guards: Sequence[RowGuard]
    blocks: bool
    closed: bool


@dataclass(frozen=True)
class RowReport:
    """What the guards of a request have seen by the end of a forward.

    `keep` None: the request goes on; else it ends, with that many of the forward's tokens. `cut[i]`
    is what to tell where the scheduler takes the first i + 1 of several tokens alone.
    """

    seen: Sequence[Reading]
    keep: int | None
    cut: Sequence[RowReport] = ()

    def of(self, tokens: int) -> RowReport:
        """What to tell where so many of the forward's tokens were taken."""
        return self.cut[tokens - 1] if 0 < tokens <= len(self.cut) else self


class Unsupported(ValueError):
    """An engine that guards cannot follow."""


def require_followed(config: Any) -> None:
    """Raise Unsupported for an engine's configuration that guards were not seen to work under."""
    runner, parallel = config.model_config.runner_type, config.parallel_config
    refused = {
        # its stages send each other what we cannot add to
        "pipeline parallelism by an external launcher": (
            parallel.pipeline_parallel_size > 1
            and parallel.distributed_executor_backend == "external_launcher"
        ),
        "speculative decoding with async scheduling (--no-async-scheduling)": (
            config.speculative_config is not None and config.scheduler_config.async_scheduling
        ),
        "a KV connector": config.kv_transfer_config is not None,
        "model runner V2 (VLLM_USE_V2_MODEL_RUNNER=0 takes V1)": config.use_v2_model_runner,
        f"the runner {runner!r}": runner != "generate",
        "CUDA graphs (-cc.cudagraph_mode=none leaves them out)": (
            config.compilation_config.cudagraph_mode != CUDAGraphMode.NONE
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


def _set_apart(config: Any, layers: Sequence[int]) -> None:
    """Let what is compiled with these layers hooked be cached apart from what is compiled without:
    vLLM's own hash does not see the hooks."""
    more = config.additional_config
    if not isinstance(more, dict):
        raise Unsupported("an additional_config that is no dictionary is taken by somebody else")
    config.additional_config = {**more, "inference_guard": list(layers)}


class GuardedRunner:
    """What guards keep for one model runner."""

    def __init__(self, runner: Any, bank: HiddenBank, plans: Mapping[str, RowPlan]) -> None:
        """`plans` are by the key that requests bring. Raises Unsupported."""
        require_followed(runner.vllm_config)
        self._runner, self._bank, self._plans = runner, bank, plans
        self._tap = Tap()
        self._tap.install(decoder_layers(runner.model), bank.layers)
        _set_apart(runner.vllm_config, bank.layers)
        self._table: PackedTable | None = None
        self._row: dict[str, int] = {}
        self._free: list[int] = []
        self._incoming: Tensor | None = None
        self._decided: dict[str, int] = {}
        """Requests about which the last forward may have decided something, and the step of the
        last token there that is no draft."""

    def swap(self, bank: HiddenBank, plans: Mapping[str, RowPlan]) -> None:
        """Go on with other guards; those that rows carry must be among them. Raises Unsupported for
        a layer that what was compiled does not pass through the tap."""
        if lost := set(bank.layers) - self._tap.layers:
            if not self._runner.model_config.enforce_eager:
                told = ", ".join(map(str, sorted(lost)))
                raise Unsupported(f"layers {told} were compiled without guards: start vLLM anew")
            self._tap.install(decoder_layers(self._runner.model), sorted(lost))
        self._bank, self._plans = bank, plans
        if self._table is not None:
            self._table.widen(self._most())
            self._table.rebank(bank)

    def _most(self) -> int:
        return max((len(plan.guards) for plan in self._plans.values()), default=0)

    @property
    def carried(self) -> set[str]:
        """The keys of the plans that rows have."""
        return {self._key(name) for name in self._row}

    def allocate(self) -> None:
        """The table, beside the cache of keys. Raises Unsupported for a cache of another kind."""
        config = self._runner.kv_cache_config
        if len(config.kv_cache_groups) != 1 or not isinstance(
            config.kv_cache_groups[0].kv_cache_spec, FullAttentionSpec
        ):
            raise Unsupported("only models of which all layers attend to all tokens are guarded")
        capacity = self._runner.max_num_reqs
        self._block = config.kv_cache_groups[0].kv_cache_spec.block_size
        places = config.num_blocks * self._block
        self._table = PackedTable(self._bank, capacity, places, self._most())
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

        def before(stretch: int, count: int) -> torch.Tensor:
            return places(stretch, np.arange(count))

        table.begin(
            PackedForward(rows, lengths, first, prompts.tolist(), places(at, token), before)
        )
        if self._incoming is not None and table.senses:
            first_layer = self._runner.model.model.start_layer
            table.resume(self._incoming, first_layer)
        self._tap.table = table
        last, drafts = first + lengths - 1, scheduled.scheduled_spec_decode_tokens
        self._decided = {
            names[i]: int(last[i]) - len(drafts.get(names[i], ()))
            for i in np.flatnonzero(table.decides(rows, last))
        }

    def receive(self, tensors: IntermediateTensors | None) -> None:
        """Before a forward: take what the last pipeline stage has sensed out of what it sends."""
        self._incoming = tensors.tensors.pop(CARRIED, None) if tensors is not None else None

    def end(self, result: Any = None) -> None:
        """The forward is over; where its `result` goes to the next stage, so does what was
        sensed."""
        table, self._tap.table = self._tap.table, None
        scores = table.scores if table is not None else None
        if scores is not None and isinstance(result, IntermediateTensors):
            result.tensors[CARRIED] = scores

    def tell(self, output: Any) -> None:
        """Give the output of a forward what its guards have decided, by request."""
        decided, self._decided = self._decided, {}
        there = [name for name in decided if name in self._row]
        table = self._table
        if not there or table is None or output is None:
            return
        # an output on its way from the device has it inside
        output = getattr(output, "_model_runner_output", output)
        several: dict[str, int] = {}
        if self._runner.speculative_config is not None:
            for name in there:
                if taken := output.sampled_token_ids[output.req_id_to_index[name]]:
                    table.accept(self._row[name], decided[name] + len(taken) - 1)
                    several[name] = len(taken)
        rows = [self._row[name] for name in there]
        if table.senses and not table.decided:
            # a forward that went around the layers: nobody knows what it said
            table.invalidate(rows)
        seen = table.read(rows)
        cut = self._cut(table, several, decided) if table.decided else {}
        output.guard = {
            name: RowReport(own, self._keep(name, own, decided[name]), cut.get(name, ()))
            for name, own in zip(there, seen, strict=True)
        }

    def _cut(
        self, table: PackedTable, several: Mapping[str, int], decided: Mapping[str, int]
    ) -> dict[str, list[RowReport]]:
        """Of requests of which a forward has decided `several` generated tokens: a stop may stand
        among them, which the scheduler alone knows."""
        asked = [
            (name, decided[name] + i)
            for name, count in several.items()
            if decided[name] > 0 and self._rechecks(name)
            for i in range(count - 1)
        ]
        seen = table.read_at([self._row[name] for name, _ in asked], [step for _, step in asked])
        cut: dict[str, list[RowReport]] = {}
        for (name, _), own in zip(asked, seen, strict=True):
            told = RowReport(own, self._keep(name, own, decided[name]))
            cut.setdefault(name, []).append(told)
        return cut

    def _rechecks(self, name: str) -> bool:
        return any(guard.recheck is not None for guard in self._plans[self._key(name)].guards)

    def _keep(self, name: str, seen: Sequence[Reading], step: int) -> int | None:
        plan = self._plans[self._key(name)]
        if plan.closed and not all(own.valid for own in seen):
            return 0
        fired = [own.position for own in seen if own.position is not None]
        # the token that follows one at which a guard fired is not let out
        return max(min(fired) - step, 0) if plan.blocks and fired else None

    def _key(self, name: str) -> str:
        params = self._runner.requests[name].sampling_params
        key: str = params.extra_args[PLAN]
        return key

    def _enter(self, name: str) -> int:
        if name not in self._row:
            assert self._table is not None
            row = self._row[name] = self._free.pop()
            # a request that no guarded front end has made ends the engine, not unguarded
            self._table.add(row, self._plans[self._key(name)].guards)
        return self._row[name]

    def _stretch(self, block: int) -> slice:
        return slice(block * self._block, (block + 1) * self._block)


def surround_runners(runners: Sequence[type], loaded: Callable[[Any], GuardedRunner]) -> None:
    """Guard what `runners`, classes of V1 model runners, run; `loaded` is asked for each whose
    model is there."""
    for kind in runners:
        for name, around in _AROUND.items():
            own = vars(kind).get(name)
            if own is not None:
                setattr(kind, name, around(own, loaded))


def _around_load(own: Any, loaded: Any) -> Any:
    @wraps(own)
    def load_model(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = own(self, *args, **kwargs)
        if getattr(self, "guarded", None) is None:
            self.guarded = loaded(self)
        return result

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

        return method

    return around


_AROUND: Mapping[str, Any] = {
    "load_model": _around_load,
    "initialize_kv_cache": _surrounding(after=lambda guarded, _args, _result: guarded.allocate()),
    "_update_states": _surrounding(before=lambda guarded, args: guarded.update(args[0])),
    "_prepare_inputs": _surrounding(after=lambda guarded, args, _result: guarded.begin(*args[:2])),
    "execute_model": _surrounding(
        before=lambda guarded, args: guarded.receive(args[1] if len(args) > 1 else None),
        after=lambda guarded, _args, result: guarded.end(result),
    ),
    "sample_tokens": _surrounding(after=lambda guarded, _args, result: guarded.tell(result)),
}
