"""The seams into vLLM's model runner V2, `vllm/v1/worker/gpu/model_runner.py`.

- `finish_requests`: requests that have ended or are preempted leave their rows;
- `add_requests`: their plans and images are remembered, since the runner keeps no requests;
- `prepare_inputs`, `prepare_attn`: tell whether the forward replays a graph, and its tokens.

Those that V1 and V2 share are in `wrapping`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from vllm.config import CUDAGraphMode

from steering.engines.vllm.runners.guarded import PLAN, Batch, GuardedRunner
from steering.engines.vllm.runners.wrapping import COMMON, Arounds, surrounding
from steering.hidden.slots import on_device


class GuardedRunnerV2(GuardedRunner):
    """The guards of a model runner V2."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._keys: dict[str, str | None] = {}
        self._media: dict[str, Sequence[Any]] = {}
        """What stands for images in prompts; vLLM keeps it in the first pipeline stage alone."""
        self._captured = False

    def update(self, scheduled: Any) -> None:
        """As `GuardedRunner.update`."""
        super().update(scheduled)
        for name in (*scheduled.finished_req_ids, *(scheduled.preempted_req_ids or ())):
            self._keys.pop(name, None)
            self._media.pop(name, None)

    def add(self, scheduled: Any) -> None:
        """Remember the plans of requests that come, or come back."""
        for new in scheduled.scheduled_new_reqs:
            # a request that goes on with more input comes in anew
            self._leave(new.req_id)
            extra = new.sampling_params.extra_args or {}
            self._keys[new.req_id] = extra.get(PLAN) if self.warming else extra[PLAN]
            self._media[new.req_id] = new.mm_features

    def choose(self, graph: Any) -> None:
        """Note the descriptor of the graph that the next forward runs in."""
        self._captured = graph.cg_mode == CUDAGraphMode.FULL

    def begin(self, batch: Any, tables: tuple[Tensor, ...], slots: Tensor) -> None:
        """Start the forward of an `InputBatch`, with its block tables and slots by group."""
        group, size, device = self._layout.group, self._layout.block_size, self._bank.device
        drafts = batch.num_draft_tokens_per_req

        def before(stretches: NDArray[np.int64], count: int) -> Tensor:
            token = torch.arange(count, device=device)
            blocks = tables[group][on_device(stretches, device)][:, token // size]
            places: Tensor = blocks.long() * size + token % size
            return places

        self._start(
            Batch(
                names=batch.req_ids,
                lengths=batch.num_scheduled_tokens.astype(np.int64),
                computed=batch.num_computed_tokens_np.astype(np.int64),
                prompts=self._runner.req_states.prompt_len.np[batch.idx_mapping_np].astype(
                    np.int64
                ),
                drafts=np.zeros(len(batch.req_ids), np.int64) if drafts is None else drafts,
                places=slots[group, : batch.num_tokens].long(),
                before=before,
                captured=self._captured,
            )
        )

    def _key(self, name: str) -> str | None:
        return self._keys[name]

    def _features(self, name: str) -> Sequence[Any]:
        return self._media.get(name, ())


AROUND: Arounds = {
    **COMMON,
    "finish_requests": surrounding(before=lambda guarded, args: guarded.update(args[0])),
    "add_requests": surrounding(before=lambda guarded, args: guarded.add(args[0])),
    "prepare_inputs": surrounding(before=lambda guarded, args: guarded.choose(args[2])),
    "prepare_attn": surrounding(
        after=lambda guarded, args, result: guarded.begin(args[0], *result)
    ),
}
