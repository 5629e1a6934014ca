"""The guards of one of vLLM's model runners: the table learns which rows a forward holds before it
runs, and tells what was decided behind it.

What differs between vLLM's two model runners is in `v1` and `v2`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from vllm.sequence import IntermediateTensors

from steering.engines.errors import Unsupported
from steering.engines.vllm.cache import CacheLayout, keep_all_tokens
from steering.engines.vllm.images import Spans, image_spans, image_tokens
from steering.engines.vllm.layers import decoder, decoder_layers
from steering.engines.vllm.reports import GuardedOutput, HostCopy, RowPlan, RowReport
from steering.engines.vllm.supported import require_followed, separate_compile_cache
from steering.engines.vllm.tap import Tap
from steering.hidden.bank import HiddenBank, NoRoom, Room
from steering.hidden.captured import CapturedTable
from steering.hidden.packed import PackedTable
from steering.hidden.packed_forward import PackedForward
from steering.hidden.rows import Reading, readings_of
from steering.hidden.slots import on_device

PLAN = "guard_plan"
"""The extra argument of a request, set by the front end, with the key of its `RowPlan`."""

CARRIED = "guard_gates"
"""The name of the scores among the tensors that one pipeline stage sends to the next."""


@dataclass(frozen=True)
class Batch:
    """The requests of one forward, in order: their names, how many tokens each has in it, how many
    were computed before, how many are its prompt's, and how many of the tokens are drafts.

    `places` and `before` are those of `PackedForward`. `captured`: the forward replays a graph.
    """

    names: Sequence[str]
    lengths: NDArray[np.int64]
    computed: NDArray[np.int64]
    prompts: NDArray[np.int64]
    drafts: NDArray[np.int64]
    places: Tensor
    before: Callable[[NDArray[np.int64], int], Tensor]
    captured: bool


class GuardedRunner:
    """The guards of one model runner, of either kind."""

    def __init__(
        self, runner: Any, bank: HiddenBank, plans: Mapping[str, RowPlan], *, room: int = 0
    ) -> None:
        """`plans` are by the key in the requests' extra arguments. `room` is the number of guards
        that can be loaded at once where CUDA graphs hold on to the bank, 0 for twice those of
        `bank`. Raises Unsupported."""
        require_followed(runner.vllm_config)
        self._runner, self._bank, self._plans = runner, bank, plans
        self._loadable = room
        self._tap = Tap()
        self._tap.install(decoder_layers(runner.model), bank.layers)
        self._first_layer: int = decoder(runner.model).start_layer
        separate_compile_cache(runner.vllm_config, bank.layers)
        self._table: PackedTable | None = None
        self._row: dict[str, int] = {}
        self._free: list[int] = []
        self._images: dict[str, Spans] = {}
        """Of the requests that have a row, those with images."""
        self._incoming: Tensor | None = None
        self.warming = False
        """Whether vLLM warms up, with requests of its own."""
        self._decided: dict[str, int] = {}
        """Requests for which the last forward may have decided, and the step of its last token
        that is not a draft."""

    def swap(self, bank: HiddenBank, plans: Mapping[str, RowPlan]) -> None:
        """Go on with other guards, which must include those that rows carry. Raises Unsupported for
        a layer that was compiled without the tap, and for guards that captured graphs have no room
        for; nothing changes then."""
        fresh = sorted(set(bank.layers) - self._tap.layers)
        if fresh and not self._runner.model_config.enforce_eager:
            named = ", ".join(map(str, fresh))
            raise Unsupported(f"layers {named} were compiled without guards: restart vLLM")
        if self._table is not None:
            try:
                self._table.widen(_most(plans))
                self._table.rebank(bank)
            except NoRoom as error:
                raise Unsupported(
                    f"the CUDA graphs were captured without room for these guards: {error}. Raise "
                    "guard_room in [server], or restart vLLM"
                ) from error
        if fresh:
            self._tap.install(decoder_layers(self._runner.model), fresh)
        self._bank, self._plans = bank, plans

    def restore(self, bank: HiddenBank, plans: Mapping[str, RowPlan]) -> None:
        """Go on with the same guards, loaded anew, after vLLM has discarded what was on the device:
        no request is under way, and nothing of the cache of keys is left."""
        if self._table is not None:
            self._table.clear()
        self._row, self._free = {}, list(range(self._runner.max_num_reqs))
        self._images = {}
        self.swap(bank, plans)

    @property
    def carried(self) -> set[str]:
        """The keys of the plans that rows have."""
        return {key for name in self._row if (key := self._key(name)) is not None}

    def persistent_tensors(self) -> list[Tensor]:
        """The tensors that captured graphs hold on to."""
        table = self._table
        return table.persistent_tensors() if isinstance(table, CapturedTable) else []

    def keep_all_tokens(self, specs: dict[str, Any]) -> None:
        """Change the `specs` of the layers' keys so that some layer keeps those of all tokens."""
        keep_all_tokens(specs, self._runner.vllm_config.cache_config.block_size)

    def allocate(self) -> None:
        """Allocate a table for the cache of keys. Raises Unsupported for other caches."""
        self._layout = CacheLayout.of(self._runner.kv_cache_config)
        capacity, most = self._runner.max_num_reqs, _most(self._plans)
        places = self._layout.places
        if tokens := _largest_graph(self._runner.vllm_config.compilation_config):
            room = self._room(most)
            try:
                roomy = HiddenBank(self._bank.stacks, self._bank.device, room)
            except NoRoom as error:
                raise Unsupported(
                    f"{error}: raise guard_room in [server], or leave out full CUDA graphs "
                    "(-cc.cudagraph_mode=PIECEWISE)"
                ) from error
            self._table = CapturedTable(roomy, capacity, places, room.most, tokens)
        else:
            self._table = PackedTable(self._bank, capacity, places, most)
        self._row, self._free = {}, list(range(capacity))

    def _room(self, most: int) -> Room:
        """Room for what is loaded and for what may come."""
        placements = self._bank.placements.values()
        steps = [placement.steps for placement in placements if placement.steps is not None]
        return Room(
            guards=self._loadable or max(2 * len(self._bank), 8),
            steps=_power_of_two(max(steps, default=4)),
            pool=_power_of_two(max(self._bank.pool, 4)),
            most=_power_of_two(max(most, 2)),
        )

    def update(self, scheduled: Any) -> None:
        """Free the rows of requests that have ended, and of preempted ones, which come in again."""
        for name in (*scheduled.finished_req_ids, *(scheduled.preempted_req_ids or ())):
            self._leave(name)
        if self._table is not None:
            for source, target in scheduled.kv_cache_block_copies or ():
                self._table.copy(self._layout.block(source), self._layout.block(target))

    def idle(self) -> None:
        """Before a forward of no request, which may replay a graph: no row is guarded in it."""
        if isinstance(self._table, CapturedTable):
            self._table.disengage()

    def capture(self) -> None:
        """Before graphs are captured: the operator does its work, on no row, until `end`."""
        if isinstance(self._table, CapturedTable):
            self._table.disengage()
            self._tap.table = self._table

    def _start(self, batch: Batch) -> None:
        """Start a forward of the table with the rows and tokens that it holds."""
        table = self._table
        if table is None or not len(self._bank):
            self.idle()
            return
        rows, first = (
            [self._enter(name) for name in batch.names],
            batch.computed + 1 - batch.prompts,
        )
        forward = PackedForward(
            *(rows, batch.lengths.tolist(), first.tolist(), batch.prompts.tolist()),
            places=batch.places,
            before=batch.before,
            image=self._image_tokens(batch),
        )
        if isinstance(table, CapturedTable):
            table.begin(forward, captured=batch.captured)
        else:
            table.begin(forward)
        if self._incoming is not None and table.senses:
            table.resume(self._incoming, self._first_layer)
        self._tap.table = table
        last = first + batch.lengths - 1
        self._decided = {
            batch.names[i]: int(last[i] - batch.drafts[i])
            for i in np.flatnonzero(table.decides(rows, last)).tolist()
        }

    def _image_tokens(self, batch: Batch) -> Tensor | None:
        """The tokens that stand for images, `[tokens]`, where a guard tells them from text."""
        if not (self._bank.selective and self._images):
            return None
        spans = {
            i: own
            for i, name in enumerate(batch.names)
            if (own := self._images.get(name)) is not None
        }
        image = image_tokens(spans, batch.computed, batch.lengths)
        return None if image is None else on_device(image, self._bank.device)

    def receive(self, tensors: IntermediateTensors | None) -> None:
        """Before a forward: take the scores out of the tensors of the previous pipeline stage."""
        self._incoming = tensors.tensors.pop(CARRIED, None) if tensors is not None else None

    def end(self, result: Any = None) -> None:
        """End the forward; where its `result` goes to the next stage, the scores go with it."""
        table, self._tap.table = self._tap.table, None
        if table is None or not isinstance(result, IntermediateTensors):
            return
        if (scores := table.scores) is not None:
            result.tensors[CARRIED] = scores

    def tell(self, output: Any) -> Any:
        """The `output` of a forward with the reports of its guards, by request; they follow an
        output that is on its way from the device, and nobody waits for them before."""
        decided, self._decided = self._decided, {}
        decided = {name: step for name, step in decided.items() if name in self._row}
        table = self._table
        if not decided or table is None or output is None:
            return output
        rows = [self._row[name] for name in decided]
        if table.senses and not table.decided:
            # the forward bypassed the hooked layers: its tokens were not sensed
            table.invalidate(rows)
        if self._runner.speculative_config is not None:
            report = partial(self._report_drafts, decided)
        else:
            plans = [self._plan(name) for name in decided]
            snapshot = HostCopy(table.snapshot(rows))
            report = partial(_report, decided, plans, table.counts(rows), snapshot)
        if hasattr(output, "get_output"):
            return GuardedOutput(output, report)
        report(output)
        return output

    def _report_drafts(self, decided: Mapping[str, int], output: Any) -> None:
        """Report on a forward that has several tokens of a request, once it is known how many of
        them were accepted."""
        table = self._table
        assert table is not None
        several: dict[str, int] = {}
        for name, step in decided.items():
            if taken := output.sampled_token_ids[output.req_id_to_index[name]]:
                table.accept(self._row[name], step + len(taken) - 1)
                several[name] = len(taken)
        readings_of_rows = table.read([self._row[name] for name in decided])
        cut = self._cut(table, several, decided) if table.decided else {}
        output.guard = {
            name: replace(_row_report(self._plan(name), readings, step), cut=cut.get(name, ()))
            for (name, step), readings in zip(decided.items(), readings_of_rows, strict=True)
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
        readings_of_steps = table.read_at(
            [self._row[name] for name, _ in steps], [step for _, step in steps]
        )
        cut: dict[str, list[RowReport]] = {}
        for (name, _), readings in zip(steps, readings_of_steps, strict=True):
            cut.setdefault(name, []).append(_row_report(self._plan(name), readings, decided[name]))
        return cut

    def _rechecks(self, name: str) -> bool:
        return any(guard.recheck is not None for guard in self._plan(name).guards)

    def _plan(self, name: str) -> RowPlan:
        key = self._key(name)
        return _UNGUARDED if key is None else self._plans[key]

    def _key(self, name: str) -> str | None:
        """The key of the request's plan; None for a request of vLLM's own while it warms up."""
        raise NotImplementedError

    def _features(self, name: str) -> Sequence[Any]:
        """What stands for media in the request's prompt, vLLM's `MultiModalFeatureSpec`s."""
        raise NotImplementedError

    def _enter(self, name: str) -> int:
        if name not in self._row:
            assert self._table is not None
            row = self._row[name] = self._free.pop()
            # a request without a plan, from an unguarded front end, must not run unguarded
            self._table.add(row, self._plan(name).guards)
            if (spans := image_spans(self._features(name))) is not None:
                self._images[name] = spans
        return self._row[name]

    def _leave(self, name: str) -> None:
        self._images.pop(name, None)
        if (row := self._row.pop(name, None)) is not None and self._table is not None:
            self._table.remove(row)
            self._free.append(row)


_UNGUARDED = RowPlan((), blocks=False, closed=False)


def _report(
    decided: Mapping[str, int],
    plans: Sequence[RowPlan],
    counts: Sequence[int],
    snapshot: HostCopy,
    output: Any,
) -> None:
    """Report on a forward of at most one generated token of each request."""
    readings_of_rows = readings_of(snapshot.wait(), counts)
    output.guard = {
        name: _row_report(plan, readings, step)
        for (name, step), plan, readings in zip(
            decided.items(), plans, readings_of_rows, strict=True
        )
    }


def _row_report(plan: RowPlan, readings: Sequence[Reading], step: int) -> RowReport:
    """The report on a request whose forward has decided from `step` on."""
    if plan.closed and not all(reading.valid for reading in readings):
        return RowReport(readings, 0)
    fired = [
        reading.position
        for guard, reading in zip(plan.guards, readings, strict=True)
        if reading.position is not None and guard.name not in plan.shadows
    ]
    # the token after the one at which a guard fired is not returned
    return RowReport(readings, max(min(fired) - step, 0) if plan.blocks and fired else None)


def _largest_graph(compilation: Any) -> int:
    """The number of tokens of the largest forward that is captured as a whole; 0 without any."""
    if not compilation.cudagraph_mode.has_full_cudagraphs():
        return 0
    sizes: Sequence[int] = compilation.cudagraph_capture_sizes or ()
    return max((int(compilation.max_cudagraph_capture_size or 0), *sizes))


def _most(plans: Mapping[str, RowPlan]) -> int:
    return max((len(plan.guards) for plan in plans.values()), default=0)


def _power_of_two(count: int) -> int:
    """The next power of two that is not smaller."""
    return 1 << (count - 1).bit_length() if count > 1 else 1
