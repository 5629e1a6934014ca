"""vLLM in this process, for many prompts at once: answers, token states, losses.

Made for fitting and measuring, not for serving: nothing is compiled, so that hooks can come later
than the model, and no prefix is cached, so that every token's state is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any, Protocol

import torch
from torch import Tensor
from vllm import LLM, SamplingParams
from vllm.sampling_params import RequestOutputKind

from steering.engines.transformers.offline import Advance, nothing
from steering.engines.vllm.collect import SEQUENCE, Collector
from steering.engines.vllm.runner import (
    PLAN,
    GuardedRunner,
    RowPlan,
    decoder_layers,
    require_followed,
)
from steering.hidden.bank import HiddenBank
from steering.hidden.rows import RowGuard

ROWS, TOKENS = 64, 2048
"""Requests and tokens in a forward at most."""

_TRIAL = "trial"
"""The plan that all requests have while they are guarded without the plugin, which has its own."""


@dataclass(frozen=True)
class Generated:
    """Generated token ids, end token left out; what the plugin told of the request, if it is on."""

    tokens: tuple[int, ...]
    guard: Mapping[str, Any] | None


class Follower(Protocol):
    """What is told of each forward: GuardedRunner and Collector are."""

    def update(self, scheduled: Any) -> None: ...
    def begin(self, scheduled: Any, lengths: Any) -> None: ...
    def end(self) -> None: ...


class VllmEngine:
    """A model in vLLM, float32. One call at a time; an iterator is read to its end, or closed,
    before the next."""

    def __init__(self, folder: str) -> None:
        """Raises ValueError for a model or an engine that cannot be followed."""
        self._llm = LLM(
            model=folder,
            dtype="float32",
            enforce_eager=True,
            enable_prefix_caching=False,
            max_num_seqs=ROWS,
            max_num_batched_tokens=TOKENS,
            seed=0,
        )
        self._engine: Any = self._llm.llm_engine
        self.config: Any = self._engine.vllm_config
        require_followed(self.config)
        self._runner: Any = self._engine.model_executor.driver_worker.worker.model_runner
        self._layers = decoder_layers(self._runner.model)
        self._follower: Follower | None = None
        self._numbers = count()
        self._surround()

    @property
    def plugged(self) -> bool:
        """Whether the plugin guards it."""
        return getattr(self._runner, "guarded", None) is not None

    @property
    def tokenizer(self) -> Any:
        return self._llm.get_tokenizer()

    @property
    def depth(self) -> int:
        """Number of decoder layers."""
        return len(self._layers)

    @property
    def width(self) -> int:
        """Of the residual stream."""
        return int(self.config.model_config.get_hidden_size())

    @property
    def device(self) -> torch.device:
        return torch.device(self._runner.device)

    def answers(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_tokens: int,
        end_tokens: frozenset[int],
        extra: Mapping[str, Any],
        advance: Advance = nothing,
    ) -> list[Generated]:
        """Greedy answers to token ids, in order; `extra` are the extra arguments of each."""
        asked = {"max_tokens": max_tokens, "stop_token_ids": sorted(end_tokens)}
        done = {}
        for i, output in self._run(prompts, extra, advance, **asked):
            said = tuple(token for token in output.outputs[0].token_ids if token not in end_tokens)
            done[i] = Generated(said, getattr(output, "guard", None))
        return [done[i] for i in range(len(prompts))]

    @contextmanager
    def guarding(self, bank: HiddenBank, guards: Sequence[RowGuard]) -> Iterator[None]:
        """While it lasts every request carries `guards` of `bank`; its hooks stay, and then do
        nothing. Raises KeyError for a guard that is not in the bank."""
        for guard in guards:
            bank.index[guard.name]
        plan = RowPlan(guards, blocks=False, closed=False)
        runner = GuardedRunner(self._runner, bank, {_TRIAL: plan})
        runner.allocate()
        with self._following(runner):
            yield

    def states(
        self,
        sequences: Sequence[Sequence[int]],
        layers: Sequence[int],
        *,
        extra: Mapping[str, Any],
        advance: Advance = nothing,
    ) -> Iterator[tuple[int, Tensor]]:
        """As `steering.engines.transformers.offline.token_states`: for each sequence, as it is
        done, its index and `[tokens, len(layers), width]`, float32 on the CPU."""
        collector = Collector(self._runner, layers, sequences, self.width)
        with collector.hooked(self._layers), self._following(collector):
            for i, _ in self._run(sequences, extra, advance, max_tokens=1):
                yield i, collector.taken(i)

    def losses(
        self, sequences: Sequence[Sequence[int]], *, extra: Mapping[str, Any]
    ) -> Iterator[tuple[int, Tensor]]:
        """For each sequence its index and `[tokens - 1]`: -log p of every token but the first."""
        for i, output in self._run(sequences, extra, nothing, max_tokens=1, prompt_logprobs=0):
            told = zip(sequences[i][1:], output.prompt_logprobs[1:], strict=True)
            yield i, torch.tensor([-logprobs[token].logprob for token, logprobs in told])

    def _run(
        self,
        prompts: Sequence[Sequence[int]],
        extra: Mapping[str, Any],
        advance: Advance,
        **sampling: Any,
    ) -> Iterator[tuple[int, Any]]:
        """Each prompt's index and output, as it ends."""
        waiting = {str(next(self._numbers)): i for i in range(len(prompts))}
        try:
            for name, i in waiting.items():
                params = SamplingParams(
                    temperature=0.0,
                    detokenize=False,
                    extra_args={**extra, PLAN: _TRIAL, SEQUENCE: i},
                    output_kind=RequestOutputKind.FINAL_ONLY,
                    **sampling,
                )
                self._engine.add_request(name, {"prompt_token_ids": list(prompts[i])}, params)
            while waiting:
                for output in self._engine.step():
                    yield waiting.pop(output.request_id), output
                    advance(1)
        finally:
            self._engine.abort_request(list(waiting))

    @contextmanager
    def _following(self, follower: Follower) -> Iterator[None]:
        self._follower = follower
        try:
            yield
        finally:
            self._follower = None

    def _surround(self) -> None:
        """Tell the follower, where there is one, what `surround` of the runner's module tells: of
        this runner only, so that the plugin finds its classes as vLLM made them."""
        update, prepare, execute = (
            getattr(self._runner, name)
            for name in ("_update_states", "_prepare_inputs", "execute_model")
        )

        def _update_states(scheduled: Any, *args: Any, **kwargs: Any) -> Any:
            if self._follower:
                self._follower.update(scheduled)
            return update(scheduled, *args, **kwargs)

        def _prepare_inputs(scheduled: Any, lengths: Any, *args: Any, **kwargs: Any) -> Any:
            result = prepare(scheduled, lengths, *args, **kwargs)
            if self._follower:
                self._follower.begin(scheduled, lengths)
            return result

        def execute_model(*args: Any, **kwargs: Any) -> Any:
            try:
                return execute(*args, **kwargs)
            finally:
                if self._follower:
                    self._follower.end()

        own: tuple[Callable[..., Any], ...] = (_update_states, _prepare_inputs, execute_model)
        for method in own:
            setattr(self._runner, method.__name__, method)
