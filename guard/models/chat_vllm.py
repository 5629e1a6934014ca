"""A language model in vLLM, for fits and evals. Needs vLLM.

With a configuration the plugin guards the model as in a server, under the policy of each request.
Without one, rows carry the guards that a fit tries.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from guard.artifact import FittedModel
from guard.config.checks import NO_POLICY
from guard.config.vllm_plugin import CONFIG, POLICY
from guard.errors import GuardFailed, ModelError
from guard.models.chat import Answers, ChatModel, GuardedAnswer, end_tokens
from guard.models.kind_checks import source_of
from guard.models.sources import GGUF
from guard.reporting.progress import Stages
from steering.engines.transformers.offline import Advance, Tokens, nothing
from steering.hidden.bank import HiddenBank
from steering.hidden.rows import Reading, RowGuard
from steering.prompt import Prompt

if TYPE_CHECKING:
    from steering.engines.vllm.offline import Generated, VllmEngine

_SETTINGS = {
    # guards need the model runner in this process, and its V1 class
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_USE_V2_MODEL_RUNNER": "0",
}
_DEFAULTS = {
    # the standard output belongs to the command
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",
}


class VllmChat(ChatModel):
    """A ChatModel on vLLM, in this process."""

    def __init__(self, engine: VllmEngine, folder: Path, *, name: str) -> None:
        model_config = engine.config.model_config
        configured = model_config.try_get_generation_config().get("eos_token_id")
        ends = end_tokens(configured, engine.tokenizer, model_config.get_vocab_size())
        super().__init__(engine.tokenizer, name=name, end_tokens=ends)
        self._engine, self._folder = engine, folder
        self._unguarded = {POLICY: NO_POLICY} if engine.has_plugin else {}

    @classmethod
    def load(
        cls, source: str, *, config: Path | None = None, quantization: str | None = None
    ) -> VllmChat:
        """As `TransformersChat.load`; under the plugin where there is a configuration file.

        `quantization` is vLLM's setting of that name, for weights that it quantises at load. Raises
        ModelError and the errors of the plugin.
        """
        os.environ.update(_SETTINGS | {key: os.environ.get(key, v) for key, v in _DEFAULTS.items()})
        # the plugin reads it when vLLM loads it
        os.environ.pop(CONFIG, None)
        if config:
            os.environ[CONFIG] = str(config)
        try:
            from steering.engines.vllm.offline import VllmEngine
        except ModuleNotFoundError as error:
            raise ModelError(
                f"the engine vllm needs {error.name}: pip install 'inference-guard[vllm,fit]', or "
                "leave out --engine"
            ) from error
        resolved = source_of(source, "language")
        if resolved.endswith(GGUF):
            raise ModelError(f"model {source!r} is a GGUF file: leave out --engine to read it")
        try:
            folder = Path(resolved) if Path(resolved).is_dir() else _download(resolved)
            engine = VllmEngine(str(folder), quantization)
        except (ValueError, OSError) as error:
            raise ModelError(f"model {source!r} in vLLM: {error}") from error
        if engine.has_plugin != (config is not None):
            raise ModelError(
                "vLLM loads its plugins once for each process: run fit and eval in separate "
                "processes, with inference-guard installed beside vLLM"
            )
        name = f"{source} ({quantization} at load)" if quantization else source
        return cls(engine, folder, name=name)

    @property
    def fitted_model(self) -> FittedModel:
        """Raises ModelError where the checkpoint has no fingerprint."""
        from steering.engines.vllm.weights import served_fingerprint

        try:
            fingerprint = served_fingerprint(self._engine.config.model_config, self._folder)
        except (OSError, ValueError) as error:
            raise ModelError(str(error)) from error
        return FittedModel(
            name=self.name,
            architecture=self._engine.config.model_config.hf_text_config.model_type,
            fingerprint=fingerprint,
            layers=self.depth,
            width=self.width,
        )

    @property
    def depth(self) -> int:
        return self._engine.depth

    @property
    def width(self) -> int:
        return self._engine.width

    @property
    def device(self) -> torch.device:
        return self._engine.device

    @property
    def precision(self) -> str:
        return str(self._engine.config.model_config.dtype)

    def answer(
        self,
        prompts: Sequence[str | Prompt],
        *,
        max_tokens: int,
        what: str,
        progress: Stages,
        bank: HiddenBank | None = None,
        guards: Sequence[RowGuard] = (),
    ) -> list[GuardedAnswer]:
        """As `ChatModel.answer`, without readings. Raises ValueError for guards under the plugin,
        which sets the guards itself."""
        advance = progress(what, len(prompts))
        if not guards:
            rows = self._generate(prompts, max_tokens, self._unguarded, advance)
        elif self._unguarded or bank is None:
            raise ValueError("guards need a bank, and an engine without the plugin")
        else:
            with self._engine.guarding(bank, guards):
                rows = self._generate(prompts, max_tokens, self._unguarded, advance)
        return [GuardedAnswer(self.text(row.tokens), row.tokens, {}) for row in rows]

    def under(self, policy: str) -> Answers:
        """Answers of requests that name `policy`, under the plugin. They raise GuardFailed where a
        request has no verdict."""

        def answers(
            prompts: Sequence[str | Prompt], *, max_tokens: int, what: str, progress: Stages
        ) -> list[GuardedAnswer]:
            advance = progress(what, len(prompts))
            rows = self._generate(prompts, max_tokens, {POLICY: policy}, advance)
            if any(row.verdict is None for row in rows):
                raise GuardFailed(f"the plugin gave no verdict on a request under {policy!r}")
            return [
                GuardedAnswer(self.text(row.tokens), row.tokens, _readings(row.verdict or {}))
                for row in rows
            ]

        return answers

    def states(
        self, sequences: Sequence[Tokens], layers: Sequence[int], advance: Advance = nothing
    ) -> Iterator[tuple[int, Tensor]]:
        return self._engine.states(_ids(sequences), layers, extra=self._unguarded, advance=advance)

    def losses(self, sequences: Sequence[Tokens]) -> Iterator[tuple[int, Tensor]]:
        return self._engine.losses(_ids(sequences), extra=self._unguarded)

    def _generate(
        self,
        prompts: Sequence[str | Prompt],
        max_tokens: int,
        extra: Mapping[str, Any],
        advance: Advance,
    ) -> list[Generated]:
        return self._engine.answers(
            self.given(prompts),
            max_tokens=max_tokens,
            end_tokens=self.end_tokens,
            extra=extra,
            advance=advance,
        )


def _readings(verdict: Mapping[str, Any]) -> dict[str, Reading]:
    return {
        guard["guard"]: Reading(
            score=torch.nan if guard["score"] is None else guard["score"],
            threshold=guard["threshold"],
            position=guard["position"],
            valid=guard["error"] is None,
        )
        for guard in verdict["guards"]
    }


def _ids(sequences: Sequence[Tokens]) -> list[Sequence[int]]:
    """Token ids alone. Raises ValueError for prompts with images."""
    for sequence in sequences:
        if isinstance(sequence, Prompt):
            sequence.require_text()
    return [each.tokens if isinstance(each, Prompt) else each for each in sequences]


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(name))
