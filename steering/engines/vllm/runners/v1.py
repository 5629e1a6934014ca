"""The seams into vLLM's model runner V1, `vllm/v1/worker/gpu_model_runner.py`.

- `_update_states`: requests that have ended or are preempted leave their rows;
- `_prepare_inputs`: tells which tokens of which requests the forward holds;
- `_model_forward`: the forward starts, and it is known whether it replays a graph.

Those that V1 and V2 share are in `wrapping`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from vllm.config import CUDAGraphMode
from vllm.forward_context import get_forward_context

from steering.engines.vllm.runners.guarded import PLAN, Batch, GuardedRunner
from steering.engines.vllm.runners.wrapping import COMMON, Arounds, surrounding
from steering.hidden.slots import on_device


class GuardedRunnerV1(GuardedRunner):
    """The guards of a model runner V1."""

    _prepared: tuple[Any, NDArray[np.int64]] | None = None

    def prepare(self, scheduled: Any, lengths: NDArray[np.int64]) -> None:
        """Note the tokens of the forward that will start: `lengths` of each request of the
        batch."""
        self._prepared = (scheduled, lengths)

    def start(self, *, captured: bool) -> None:
        """Start the forward that was prepared."""
        prepared, self._prepared = self._prepared, None
        if prepared is None:
            return
        scheduled, lengths = prepared
        batch = self._runner.input_batch
        names = batch.req_ids
        lengths = np.asarray(lengths[: len(names)], np.int64)
        computed = batch.num_computed_tokens_cpu[: len(names)].astype(np.int64)
        group, size = self._layout.group, self._layout.block_size
        blocks = batch.block_table[group].block_table.np
        device = self._bank.device

        def places(row: Any, token: Any) -> Tensor:
            place = blocks[row, token // size].astype(np.int64) * size + token % size
            return on_device(place, device)

        def before(stretches: NDArray[np.int64], count: int) -> Tensor:
            return places(stretches[:, None], np.arange(count)[None])

        at = np.arange(len(names)).repeat(lengths)
        starts = lengths.cumsum() - lengths
        token = np.arange(len(at)) + (computed - starts).repeat(lengths)
        drafts = scheduled.scheduled_spec_decode_tokens
        self._start(
            Batch(
                names=names,
                lengths=lengths,
                computed=computed,
                prompts=batch.num_prompt_tokens[: len(names)].astype(np.int64),
                drafts=np.array([len(drafts.get(name, ())) for name in names], np.int64),
                places=places(at, token),
                before=before,
                captured=captured,
            )
        )

    def begin(self, scheduled: Any, lengths: Any) -> None:
        """Prepare and start a forward that replays nothing."""
        self.prepare(scheduled, lengths)
        self.start(captured=False)

    def _key(self, name: str) -> str | None:
        params = self._runner.requests[name].sampling_params
        key: str = params.extra_args[PLAN]
        return key

    def _features(self, name: str) -> Sequence[Any]:
        features: Sequence[Any] | None = self._runner.requests[name].mm_features
        return features or ()


def _start(guarded: GuardedRunnerV1, _args: Any) -> None:
    mode = get_forward_context().cudagraph_runtime_mode
    guarded.start(captured=mode == CUDAGraphMode.FULL)


AROUND: Arounds = {
    **COMMON,
    "_update_states": surrounding(before=lambda guarded, args: guarded.update(args[0])),
    "_prepare_inputs": surrounding(after=lambda guarded, args, _result: guarded.prepare(*args[:2])),
    "_model_forward": surrounding(before=_start),
}
