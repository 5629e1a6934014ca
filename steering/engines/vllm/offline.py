"""vLLM in this process, for many prompts at once: answers, token states, losses.

For fits and evals, not for serving: nothing is compiled, so that hooks can be installed after the
model was loaded, and no prefix is cached, so that the state of every token is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from vllm import LLM, SamplingParams
from vllm.sampling_params import RequestOutputKind

from steering.engines.errors import Unsupported
from steering.engines.transformers.offline import Advance, nothing
from steering.engines.vllm.collect import SEQUENCE, Collector
from steering.engines.vllm.layers import decoder_layers
from steering.engines.vllm.reports import RowPlan
from steering.engines.vllm.runners.guarded import PLAN
from steering.engines.vllm.runners.v1 import GuardedRunnerV1
from steering.engines.vllm.supported import require_followed
from steering.hidden.bank import HiddenBank
from steering.hidden.rows import RowGuard
from steering.prompt import Prompt
from steering.quantisation import of_checkpoint

ROWS, TOKENS = 64, 2048
"""The most requests and tokens in one forward."""

_TRIAL = "trial"
"""The plan of all requests under `guarding`; the plugin has other plans."""


@dataclass(frozen=True)
class Generated:
    """Generated token ids without the end token, and the plugin's verdict, None without plugin."""

    tokens: tuple[int, ...]
    verdict: Mapping[str, Any] | None


class ForwardObserver(Protocol):
    """Gets a call at each stage of a forward. GuardedRunnerV1 and Collector are observers."""

    def update(self, scheduled: Any) -> None: ...
    def begin(self, scheduled: Any, lengths: Any) -> None: ...
    def end(self) -> None: ...


class VllmEngine:
    """A model in vLLM, float32; quantised weights in the dtype that vLLM takes for them. One call
    at a time: an iterator must be exhausted or closed before the next call."""

    def __init__(self, folder: str, quantization: str | None = None) -> None:
        """`quantization` is vLLM's setting, for weights that it quantises at load. Raises
        ValueError for a model or an engine that guards cannot follow."""
        packed = quantization or of_checkpoint(Path(folder))
        self._llm = LLM(
            model=folder,
            quantization=quantization,
            # kernels for packed weights are not there for every dtype
            dtype="auto" if packed else "float32",
            enforce_eager=True,
            enable_prefix_caching=False,
            max_num_seqs=ROWS,
            max_num_batched_tokens=TOKENS,
            seed=0,
        )
        self._engine: Any = self._llm.llm_engine
        self.config: Any = self._engine.vllm_config
        require_followed(self.config)
        if self.config.use_v2_model_runner:
            raise Unsupported(
                "fits and evals run in model runner V1: set VLLM_USE_V2_MODEL_RUNNER=0"
            )
        self._runner: Any = self._engine.model_executor.driver_worker.worker.model_runner
        self._layers = decoder_layers(self._runner.model)
        self._observer: ForwardObserver | None = None
        self._numbers = count()
        self._patch_runner()

    @property
    def has_plugin(self) -> bool:
        """Whether the plugin guards the model."""
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
        """Width of the residual stream."""
        return int(self.config.model_config.get_hidden_size())

    @property
    def device(self) -> torch.device:
        return torch.device(self._runner.device)

    def answers(
        self,
        prompts: Sequence[Prompt],
        *,
        max_tokens: int,
        end_tokens: frozenset[int],
        extra: Mapping[str, Any],
        advance: Advance = nothing,
    ) -> list[Generated]:
        """Greedy answers, in order; `extra` are the extra arguments of each request. Raises
        ValueError for a prompt that holds more than text."""
        for prompt in prompts:
            prompt.require_text()
        sampling = {"max_tokens": max_tokens, "stop_token_ids": sorted(end_tokens)}
        sequences = [prompt.tokens for prompt in prompts]
        done = {}
        for i, output in self._run(sequences, extra, advance, **sampling):
            tokens = tuple(t for t in output.outputs[0].token_ids if t not in end_tokens)
            done[i] = Generated(tokens, getattr(output, "guard", None))
        return [done[i] for i in range(len(prompts))]

    @contextmanager
    def guarding(self, bank: HiddenBank, guards: Sequence[RowGuard]) -> Iterator[None]:
        """A context in which every request carries `guards` of `bank`. The hooks stay afterwards
        and do nothing. Raises KeyError for a guard that is not in the bank."""
        for guard in guards:
            bank.index[guard.name]
        plan = RowPlan(guards, blocks=False, closed=False)
        runner = GuardedRunnerV1(self._runner, bank, {_TRIAL: plan})
        runner.allocate()
        with self._observed_by(runner):
            yield

    def states(
        self,
        sequences: Sequence[Sequence[int]],
        layers: Sequence[int],
        *,
        extra: Mapping[str, Any],
        advance: Advance = nothing,
    ) -> Iterator[tuple[int, Tensor]]:
        """As `steering.engines.transformers.offline.token_states`: for each sequence of token ids,
        in any order, its index and `[tokens, len(layers), width]`, float32 on the CPU."""
        collector = Collector(self._runner, layers, sequences, self.width)
        with collector.hooks(self._layers), self._observed_by(collector):
            for i, _ in self._run(sequences, extra, advance, max_tokens=1):
                yield i, collector.pop(i)

    def losses(
        self, sequences: Sequence[Sequence[int]], *, extra: Mapping[str, Any]
    ) -> Iterator[tuple[int, Tensor]]:
        """As `steering.engines.transformers.offline.token_losses`."""
        for i, output in self._run(sequences, extra, nothing, max_tokens=1, prompt_logprobs=0):
            pairs = zip(sequences[i][1:], output.prompt_logprobs[1:], strict=True)
            yield i, torch.tensor([-logprobs[token].logprob for token, logprobs in pairs])

    def _run(
        self,
        sequences: Sequence[Sequence[int]],
        extra: Mapping[str, Any],
        advance: Advance,
        **sampling: Any,
    ) -> Iterator[tuple[int, Any]]:
        """The index and output of each sequence of token ids, as it ends."""
        waiting = {str(next(self._numbers)): i for i in range(len(sequences))}
        try:
            for name, i in waiting.items():
                params = SamplingParams(
                    temperature=0.0,
                    detokenize=False,
                    extra_args={**extra, PLAN: _TRIAL, SEQUENCE: i},
                    output_kind=RequestOutputKind.FINAL_ONLY,
                    **sampling,
                )
                self._engine.add_request(name, {"prompt_token_ids": list(sequences[i])}, params)
            while waiting:
                for output in self._engine.step():
                    yield waiting.pop(output.request_id), output
                    advance(1)
        finally:
            self._engine.abort_request(list(waiting))

    @contextmanager
    def _observed_by(self, observer: ForwardObserver) -> Iterator[None]:
        self._observer = observer
        try:
            yield
        finally:
            self._observer = None

    def _patch_runner(self) -> None:
        """Wrap the methods of this runner that `surround_runners` wraps in its class, to call the
        observer. The class stays as it is: the plugin patches it."""
        update, prepare, execute = (
            getattr(self._runner, name)
            for name in ("_update_states", "_prepare_inputs", "execute_model")
        )

        def _update_states(scheduled: Any, *args: Any, **kwargs: Any) -> Any:
            if self._observer:
                self._observer.update(scheduled)
            return update(scheduled, *args, **kwargs)

        def _prepare_inputs(scheduled: Any, lengths: Any, *args: Any, **kwargs: Any) -> Any:
            result = prepare(scheduled, lengths, *args, **kwargs)
            if self._observer:
                self._observer.begin(scheduled, lengths)
            return result

        def execute_model(*args: Any, **kwargs: Any) -> Any:
            try:
                return execute(*args, **kwargs)
            finally:
                if self._observer:
                    self._observer.end()

        wrappers: tuple[Callable[..., Any], ...] = (_update_states, _prepare_inputs, execute_model)
        for method in wrappers:
            setattr(self._runner, method.__name__, method)
