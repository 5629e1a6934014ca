"""vLLM's model runner with guards: the table learns which rows a forward holds before it runs.

Written against the V1 runner (`vllm/v1/worker/gpu_model_runner.py`), whose methods it wraps:

- `load_model`: installs hooks after the decoder layers, before anything is compiled;
- `get_kv_cache_spec`: where all layers slide, some keep the keys of all tokens;
- `initialize_kv_cache`: allocates the table, as large as the cache of keys;
- `_update_states`: requests that have ended or are preempted leave their rows;
- `_prepare_inputs`: passes the forward's stretches, by request id and token counts;
- `execute_model`: guards act only inside it, so not while vLLM profiles or warms up;
- `sample_tokens`: attaches the guards' reports to its output.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any

import numpy as np
import torch
from torch import Tensor
from vllm.config import CUDAGraphMode
from vllm.sequence import IntermediateTensors

from steering.engines.errors import Unsupported
from steering.engines.vllm.cache import CacheLayout, keep_all_tokens
from steering.engines.vllm.connectors import FOLLOWED, unfollowed_connector
from steering.engines.vllm.layers import decoder, decoder_layers
from steering.engines.vllm.tap import Tap
from steering.hidden.bank import HiddenBank
from steering.hidden.packed import PackedTable
from steering.hidden.packed_forward import PackedForward
from steering.hidden.rows import Reading, RowGuard

PLAN = "guard_plan"
"""The extra argument of a request, set by the front end, with the key of its `RowPlan`."""

CARRIED = "guard_gates"
"""The name of the scores among the tensors that one pipeline stage sends to the next."""


@dataclass(frozen=True)
class RowPlan:
    """The guards of a request.

    `blocks`: a guard that fires ends the request; `closed`: so does an invalid reading.
    """

    guards: Sequence[RowGuard]
    blocks: bool
    closed: bool


@dataclass(frozen=True)
class RowReport:
    """The readings of a request's guards by the end of a forward.

    `keep` None: the request goes on; else it ends, with that many of the forward's tokens. `cut[i]`
    is the report where the scheduler takes only the first i + 1 of several tokens.
    """

    readings: Sequence[Reading]
    keep: int | None
    cut: Sequence[RowReport] = ()

    def of(self, tokens: int) -> RowReport:
        """The report where only the first `tokens` of the forward were taken."""
        return self.cut[tokens - 1] if 0 < tokens <= len(self.cut) else self


def require_followed(config: Any) -> None:
    """Raise Unsupported for an engine configuration with which guards are not tested."""
    runner, parallel = config.model_config.runner_type, config.parallel_config
    connector = unfollowed_connector(config)
    refused = {
        # the tensors between its stages cannot carry the scores
        "pipeline parallelism by an external launcher": (
            parallel.pipeline_parallel_size > 1
            and parallel.distributed_executor_backend == "external_launcher"
        ),
        "speculative decoding with async scheduling (--no-async-scheduling)": (
            config.speculative_config is not None and config.scheduler_config.async_scheduling
        ),
        f"the KV connector {connector} (only {', '.join(FOLLOWED)})": connector is not None,
        "model runner V2 (VLLM_USE_V2_MODEL_RUNNER=0 takes V1)": config.use_v2_model_runner,
        f"the runner {runner!r}": runner != "generate",
        # guards are bound to the weights that they were fitted on
        "weights that come while it runs (weight_transfer_config)": (
            config.weight_transfer_config is not None
        ),
        "CUDA graphs (-cc.cudagraph_mode=none leaves them out)": (
            config.compilation_config.cudagraph_mode != CUDAGraphMode.NONE
        ),
    }
    if named := [name for name, applies in refused.items() if applies]:
        raise Unsupported(f"guards do not go together with {', '.join(named)} yet")


def _separate_compile_cache(config: Any, layers: Sequence[int]) -> None:
    """Give models compiled with these layers hooked an entry of their own in the compile cache:
    the hash that vLLM computes does not cover hooks."""
    additional = config.additional_config
    if not isinstance(additional, dict):
        raise Unsupported("guards need an additional_config that is a dictionary: change it to one")
    config.additional_config = {**additional, "inference_guard": list(layers)}


class GuardedRunner:
    """The guards of one model runner."""

    def __init__(self, runner: Any, bank: HiddenBank, plans: Mapping[str, RowPlan]) -> None:
        """`plans` are by the key in the requests' extra arguments. Raises Unsupported."""
        require_followed(runner.vllm_config)
        self._runner, self._bank, self._plans = runner, bank, plans
        self._tap = Tap()
        self._tap.install(decoder_layers(runner.model), bank.layers)
        self._first_layer: int = decoder(runner.model).start_layer
        _separate_compile_cache(runner.vllm_config, bank.layers)
        self._table: PackedTable | None = None
        self._row: dict[str, int] = {}
        self._free: list[int] = []
        self._incoming: Tensor | None = None
        self._decided: dict[str, int] = {}
        """Requests for which the last forward may have decided, and the step of its last token
        that is not a draft."""

    def swap(self, bank: HiddenBank, plans: Mapping[str, RowPlan]) -> None:
        """Go on with other guards, which must include those that rows carry. Raises Unsupported for
        a layer that was compiled without the tap."""
        if fresh := sorted(set(bank.layers) - self._tap.layers):
            if not self._runner.model_config.enforce_eager:
                named = ", ".join(map(str, fresh))
                raise Unsupported(f"layers {named} were compiled without guards: restart vLLM")
            self._tap.install(decoder_layers(self._runner.model), fresh)
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

    def keep_all_tokens(self, specs: dict[str, Any]) -> None:
        """Change the `specs` of the layers' keys so that some layer keeps those of all tokens."""
        keep_all_tokens(specs, self._runner.vllm_config.cache_config.block_size)

    def allocate(self) -> None:
        """Allocate a table for the cache of keys. Raises Unsupported for other caches."""
        self._layout = CacheLayout.of(self._runner.kv_cache_config)
        capacity, places = self._runner.max_num_reqs, self._layout.places
        self._table = PackedTable(self._bank, capacity, places, self._most())
        self._free = list(range(capacity))

    def update(self, scheduled: Any) -> None:
        """Free the rows of requests that have ended, and of preempted ones, which come in again."""
        for name in (*scheduled.finished_req_ids, *(scheduled.preempted_req_ids or ())):
            if (row := self._row.pop(name, None)) is not None and self._table is not None:
                self._table.remove(row)
                self._free.append(row)
        if self._table is not None:
            for source, target in scheduled.kv_cache_block_copies or ():
                self._table.copy(self._layout.block(source), self._layout.block(target))

    def begin(self, scheduled: Any, lengths: Any) -> None:
        """Start a forward of the table with the rows and tokens that it holds."""
        table = self._table
        if table is None or not len(self._bank):
            return
        batch = self._runner.input_batch
        names = batch.req_ids
        rows = [self._enter(name) for name in names]
        prompts = batch.num_prompt_tokens[: len(names)].astype(np.int64)
        computed = batch.num_computed_tokens_cpu[: len(names)].astype(np.int64)
        first = computed + 1 - prompts
        blocks, size = batch.block_table[self._layout.group].block_table.np, self._layout.block_size

        def places(row: Any, token: Any) -> torch.Tensor:
            place = blocks[row, token // size].astype(np.int64) * size + token % size
            return torch.from_numpy(place).to(self._bank.device)

        at = np.arange(len(names)).repeat(lengths)
        starts = lengths.cumsum() - lengths
        token = np.arange(len(at)) + (computed - starts).repeat(lengths)

        def before(stretch: int, count: int) -> torch.Tensor:
            return places(stretch, np.arange(count))

        table.begin(
            PackedForward(rows, lengths, first, prompts.tolist(), places(at, token), before)
        )
        if self._incoming is not None and table.senses:
            table.resume(self._incoming, self._first_layer)
        self._tap.table = table
        last, drafts = first + lengths - 1, scheduled.scheduled_spec_decode_tokens
        self._decided = {
            names[i]: int(last[i]) - len(drafts.get(names[i], ()))
            for i in np.flatnonzero(table.decides(rows, last))
        }

    def receive(self, tensors: IntermediateTensors | None) -> None:
        """Before a forward: take the scores out of the tensors of the previous pipeline stage."""
        self._incoming = tensors.tensors.pop(CARRIED, None) if tensors is not None else None

    def end(self, result: Any = None) -> None:
        """End the forward; where its `result` goes to the next stage, the scores go with it."""
        table, self._tap.table = self._tap.table, None
        scores = table.scores if table is not None else None
        if scores is not None and isinstance(result, IntermediateTensors):
            result.tensors[CARRIED] = scores

    def tell(self, output: Any) -> None:
        """Attach the reports of a forward to its output, by request."""
        decided, self._decided = self._decided, {}
        names = [name for name in decided if name in self._row]
        table = self._table
        if not names or table is None or output is None:
            return
        # an output on its way from the device has it inside
        output = getattr(output, "_model_runner_output", output)
        several: dict[str, int] = {}
        if self._runner.speculative_config is not None:
            for name in names:
                if taken := output.sampled_token_ids[output.req_id_to_index[name]]:
                    table.accept(self._row[name], decided[name] + len(taken) - 1)
                    several[name] = len(taken)
        rows = [self._row[name] for name in names]
        if table.senses and not table.decided:
            # the forward bypassed the hooked layers: its tokens were not sensed
            table.invalidate(rows)
        readings_of = table.read(rows)
        cut = self._cut(table, several, decided) if table.decided else {}
        output.guard = {
            name: RowReport(readings, self._keep(name, readings, decided[name]), cut.get(name, ()))
            for name, readings in zip(names, readings_of, strict=True)
        }

    def _cut(
        self, table: PackedTable, several: Mapping[str, int], decided: Mapping[str, int]
    ) -> dict[str, list[RowReport]]:
        """The reports by token of requests for which a forward has decided `several` generated
        tokens: only the scheduler knows whether one of them stops the request."""
        steps = [
            (name, decided[name] + i)
            for name, count in several.items()
            if decided[name] > 0 and self._rechecks(name)
            for i in range(count - 1)
        ]
        readings_of = table.read_at(
            [self._row[name] for name, _ in steps], [step for _, step in steps]
        )
        cut: dict[str, list[RowReport]] = {}
        for (name, _), readings in zip(steps, readings_of, strict=True):
            report = RowReport(readings, self._keep(name, readings, decided[name]))
            cut.setdefault(name, []).append(report)
        return cut

    def _rechecks(self, name: str) -> bool:
        return any(guard.recheck is not None for guard in self._plans[self._key(name)].guards)

    def _keep(self, name: str, readings: Sequence[Reading], step: int) -> int | None:
        plan = self._plans[self._key(name)]
        if plan.closed and not all(reading.valid for reading in readings):
            return 0
        fired = [reading.position for reading in readings if reading.position is not None]
        # the token after the one at which a guard fired is not returned
        return max(min(fired) - step, 0) if plan.blocks and fired else None

    def _key(self, name: str) -> str:
        params = self._runner.requests[name].sampling_params
        key: str = params.extra_args[PLAN]
        return key

    def _enter(self, name: str) -> int:
        if name not in self._row:
            assert self._table is not None
            row = self._row[name] = self._free.pop()
            # a request without a plan, from an unguarded front end, must not run unguarded
            self._table.add(row, self._plans[self._key(name)].guards)
        return self._row[name]


def surround_runners(runners: Sequence[type], loaded: Callable[[Any], GuardedRunner]) -> None:
    """Guard the `runners`, classes of V1 model runners; `loaded` gives the guards of a runner whose
    model is loaded."""
    for kind in runners:
        for name, around in _AROUND.items():
            method = vars(kind).get(name)
            if method is not None:
                setattr(kind, name, around(method, loaded))


def _around_load(original: Any, loaded: Any) -> Any:
    @wraps(original)
    def load_model(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(self, *args, **kwargs)
        if getattr(self, "guarded", None) is None:
            self.guarded = loaded(self)
        return result

    return load_model


def _surrounding(
    before: Callable[[GuardedRunner, tuple[Any, ...]], None] | None = None,
    after: Callable[[GuardedRunner, tuple[Any, ...], Any], None] | None = None,
) -> Any:
    def around(original: Any, _loaded: Any) -> Any:
        @wraps(original)
        def method(self: Any, *args: Any, **kwargs: Any) -> Any:
            guarded: GuardedRunner | None = getattr(self, "guarded", None)
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
                after(guarded, args, result)
            return result

        return method

    return around


_AROUND: Mapping[str, Any] = {
    "load_model": _around_load,
    "get_kv_cache_spec": _surrounding(
        after=lambda guarded, _args, result: guarded.keep_all_tokens(result)
    ),
    "initialize_kv_cache": _surrounding(after=lambda guarded, _args, _result: guarded.allocate()),
    "_update_states": _surrounding(before=lambda guarded, args: guarded.update(args[0])),
    "_prepare_inputs": _surrounding(after=lambda guarded, args, _result: guarded.begin(*args[:2])),
    "execute_model": _surrounding(
        before=lambda guarded, args: guarded.receive(args[1] if len(args) > 1 else None),
        after=lambda guarded, _args, result: guarded.end(result),
    ),
    "sample_tokens": _surrounding(after=lambda guarded, _args, result: guarded.tell(result)),
}
