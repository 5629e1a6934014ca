"""A language model in vLLM, as fitting and evaluation use it. Needs vLLM.

With a configuration the plugin guards it as it guards a server: a request's policy is its own.
Without one it carries what a fit tries out.
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
from guard.models.sources import resolve_source
from guard.reporting.progress import Stages
from steering.engines.transformers.offline import Advance, nothing
from steering.fingerprint import checkpoint_fingerprint
from steering.hidden.bank import HiddenBank
from steering.hidden.rows import Reading, RowGuard

if TYPE_CHECKING:
    from steering.engines.vllm.offline import Generated, VllmEngine

_SETTINGS = {
    # forwards are followed in this process, on the runner that guards know
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_USE_V2_MODEL_RUNNER": "0",
}
_DEFAULTS = {
    # what a command prints is its own
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",
}


class VllmChat(ChatModel):
    """A model that vLLM runs in this process."""

    def __init__(self, engine: VllmEngine, folder: Path, *, name: str) -> None:
        stated = engine.config.model_config.try_get_generation_config().get("eos_token_id")
        ends = end_tokens(stated, engine.tokenizer)
        super().__init__(engine.tokenizer, name=name, end_tokens=ends)
        self._engine, self._folder = engine, folder
        self._bare = {POLICY: NO_POLICY} if engine.plugged else {}

    @classmethod
    def load(cls, source: str, *, config: Path | None = None) -> VllmChat:
        """From an added model's name, a directory or a hub name; with a configuration file, under
        the plugin's guards. Raises ModelError, and what the plugin raises."""
        os.environ.update(_SETTINGS | {key: os.environ.get(key, v) for key, v in _DEFAULTS.items()})
        # read once, when vLLM loads its plugins
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
        found = resolve_source(source)
        try:
            folder = Path(found) if Path(found).is_dir() else _downloaded(found)
            engine = VllmEngine(str(folder))
        except (ValueError, OSError) as error:
            raise ModelError(f"model {source!r} in vLLM: {error}") from error
        if engine.plugged != (config is not None):
            raise ModelError(
                "vLLM loads its plugins once a process: fit and measure in processes of their own, "
                "with inference-guard installed beside vLLM"
            )
        return cls(engine, folder, name=source)

    @property
    def fitted_model(self) -> FittedModel:
        """Raises ModelError where the checkpoint cannot be told."""
        try:
            told = checkpoint_fingerprint(self._folder)
        except ValueError as error:
            raise ModelError(str(error)) from error
        return FittedModel(
            name=self.name,
            architecture=self._engine.config.model_config.hf_text_config.model_type,
            fingerprint=told,
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

    def answer(
        self,
        prompts: Sequence[str],
        *,
        max_tokens: int,
        what: str,
        progress: Stages,
        bank: HiddenBank | None = None,
        guards: Sequence[RowGuard] = (),
    ) -> list[GuardedAnswer]:
        """As `ChatModel.answer`, without readings. Raises ValueError for guards beside a
        plugin's."""
        advance = progress(what, len(prompts))
        if not guards:
            given = self._given(prompts, max_tokens, self._bare, advance)
        elif self._bare or bank is None:
            raise ValueError("guards need a bank, and an engine without the plugin's")
        else:
            with self._engine.guarding(bank, guards):
                given = self._given(prompts, max_tokens, self._bare, advance)
        return [GuardedAnswer(self.text(row.tokens), row.tokens, {}) for row in given]

    def under(self, policy: str) -> Answers:
        """Answers as the plugin gives them to requests that ask for `policy`. They raise
        GuardFailed where it tells nothing of a request."""

        def answers(
            prompts: Sequence[str], *, max_tokens: int, what: str, progress: Stages
        ) -> list[GuardedAnswer]:
            advance = progress(what, len(prompts))
            given = self._given(prompts, max_tokens, {POLICY: policy}, advance)
            if any(row.guard is None for row in given):
                raise GuardFailed(f"the plugin told nothing of a request under {policy!r}")
            return [
                GuardedAnswer(self.text(r.tokens), r.tokens, _readings(r.guard or {}))
                for r in given
            ]

        return answers

    def states(
        self, sequences: Sequence[Sequence[int]], layers: Sequence[int], advance: Advance = nothing
    ) -> Iterator[tuple[int, Tensor]]:
        return self._engine.states(sequences, layers, extra=self._bare, advance=advance)

    def losses(self, sequences: Sequence[Sequence[int]]) -> Iterator[tuple[int, Tensor]]:
        return self._engine.losses(sequences, extra=self._bare)

    def _given(
        self, prompts: Sequence[str], max_tokens: int, extra: Mapping[str, Any], advance: Advance
    ) -> list[Generated]:
        return self._engine.answers(
            [self.prompt(text) for text in prompts],
            max_tokens=max_tokens,
            end_tokens=self.end_tokens,
            extra=extra,
            advance=advance,
        )


def _readings(verdict: Mapping[str, Any]) -> dict[str, Reading]:
    return {
        each["guard"]: Reading(
            score=torch.nan if each["score"] is None else each["score"],
            threshold=each["threshold"],
            position=each["position"],
            valid=each["error"] is None,
        )
        for each in verdict["guards"]
    }


def _downloaded(name: str) -> Path:
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(name))
