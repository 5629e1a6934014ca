"""A loaded language model with its tokenizer, as fitting and evaluation use it. Needs torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from guard.artifact import FittedModel
from guard.errors import ModelError
from guard.models.sources import resolve_source
from guard.reporting.progress import Stages
from steering.engines.transformers.engine import RowStart, TransformersEngine
from steering.engines.transformers.loading import load_language_model
from steering.engines.transformers.offline import (
    Advance,
    answers,
    nothing,
    token_losses,
    token_states,
)
from steering.engines.transformers.sampling import RowSampling
from steering.fingerprint import fingerprint
from steering.hidden.bank import HiddenBank
from steering.hidden.rows import Reading, RowGuard

BATCH = 32


class Answers(Protocol):
    """Greedy answers to prompts, in their order."""

    def __call__(
        self, prompts: Sequence[str], *, max_tokens: int, what: str, progress: Stages
    ) -> list[GuardedAnswer]: ...


class ChatModel(ABC):
    """What fitting and evaluation ask of a model, whatever engine runs it.

    Prompts are as the model's own chat template writes them.
    """

    def __init__(self, tokenizer: Any, *, name: str, end_tokens: frozenset[int]) -> None:
        self.tokenizer = tokenizer
        self.name = name
        self.end_tokens = end_tokens

    def prompt(self, text: str) -> list[int]:
        """Token ids of one user message, generation prompt added."""
        chat = [{"role": "user", "content": text}]
        rendered = self.tokenizer.apply_chat_template(
            chat, tokenize=False, add_generation_prompt=True
        )
        return self.ids(rendered)

    def text(self, tokens: Sequence[int]) -> str:
        """Generated tokens as text, special ones left out."""
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=True))

    def ids(self, text: str) -> list[int]:
        """Token ids of `text`, nothing added."""
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)

    @property
    @abstractmethod
    def fitted_model(self) -> FittedModel:
        """How an artifact names the model."""

    @property
    @abstractmethod
    def depth(self) -> int:
        """Number of decoder layers."""

    @property
    @abstractmethod
    def width(self) -> int:
        """Of the residual stream."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where guards must lie."""

    @abstractmethod
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
        """Greedy answers to all prompts, each row carrying `guards` of `bank`."""

    @abstractmethod
    def states(
        self, sequences: Sequence[Sequence[int]], layers: Sequence[int], advance: Advance = nothing
    ) -> Iterator[tuple[int, Tensor]]:
        """For each sequence of token ids, in any order, its index and the residual stream behind
        `layers`, `[tokens, len(layers), width]`, float32 on the CPU."""

    @abstractmethod
    def losses(self, sequences: Sequence[Sequence[int]]) -> Iterator[tuple[int, Tensor]]:
        """For each sequence of token ids, in any order, its index and `[tokens - 1]`, -log p of
        every token but the first, on the CPU."""


class TransformersChat(ChatModel):
    """A transformers model."""

    def __init__(self, model: Any, tokenizer: Any, *, name: str) -> None:
        super().__init__(
            tokenizer,
            name=name,
            end_tokens=end_tokens(model.generation_config.eos_token_id, tokenizer),
        )
        self.model = model

    @classmethod
    def load(cls, source: str, *, device: str = "auto") -> TransformersChat:
        """From an added model's name, a directory or a hub name. Raises ModelError."""
        try:
            model, tokenizer = load_language_model(resolve_source(source), device=device)
        except ValueError as error:
            raise ModelError(f"model {source!r}: {error}") from error
        return cls(model, tokenizer, name=source)

    @property
    def fitted_model(self) -> FittedModel:
        return FittedModel(
            name=self.name,
            architecture=self.model.config.model_type,
            fingerprint=fingerprint(self.model),
            layers=self.depth,
            width=self.width,
        )

    @property
    def depth(self) -> int:
        return int(self.model.config.num_hidden_layers)

    @property
    def width(self) -> int:
        return int(self.model.config.hidden_size)

    @property
    def device(self) -> torch.device:
        found: torch.device = next(self.model.parameters()).device
        return found

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
        engine = TransformersEngine(self.model, bank or HiddenBank(), capacity=BATCH)
        try:
            given = answers(
                engine,
                [RowStart(self.prompt(text), guards, RowSampling()) for text in prompts],
                max_tokens=max_tokens,
                end_tokens=self.end_tokens,
                advance=progress(what, len(prompts)),
            )
        finally:
            engine.close()
        return [GuardedAnswer(self.text(row.tokens), row.tokens, row.readings) for row in given]

    def states(
        self, sequences: Sequence[Sequence[int]], layers: Sequence[int], advance: Advance = nothing
    ) -> Iterator[tuple[int, Tensor]]:
        return token_states(self.model, sequences, layers, advance=advance)

    def losses(self, sequences: Sequence[Sequence[int]]) -> Iterator[tuple[int, Tensor]]:
        return token_losses(self.model, sequences)


@dataclass(frozen=True, slots=True)
class GuardedAnswer:
    """One answer: its text, its token ids, and what each guard read on the way."""

    text: str
    tokens: tuple[int, ...]
    readings: dict[str, Reading]

    @property
    def fired(self) -> bool:
        """Whether any guard fired."""
        return any(reading.fired for reading in self.readings.values())


def end_tokens(stated: int | list[int] | None, tokenizer: Any) -> frozenset[int]:
    """Every token id that ends an answer; `stated` is the generation configuration's
    `eos_token_id`."""
    listed = stated if isinstance(stated, list) else [stated]
    return frozenset(t for t in (*listed, tokenizer.eos_token_id) if t is not None)
