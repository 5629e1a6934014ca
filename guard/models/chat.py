"""A loaded language model with its tokenizer, as fitting and evaluation use it. Needs torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from guard.artifact import FittedModel
from guard.config.schema import ModelConfig
from guard.errors import ModelError
from guard.models.kind_checks import source_of
from guard.reporting.progress import Stages
from steering.engines.transformers.continuations import Continued, Losses, continuation_losses
from steering.engines.transformers.engine import RowStart, TransformersEngine
from steering.engines.transformers.loading.models import load_language_model
from steering.engines.transformers.offline import (
    Advance,
    Tokens,
    answers,
    nothing,
    token_losses,
    token_states,
)
from steering.engines.transformers.rewinding import AnswerPolicy, Sentences
from steering.engines.transformers.sampling import RowSampling
from steering.engines.transformers.tokens import PromptTokenizer
from steering.engines.transformers.vision.base import VisionFamily
from steering.engines.transformers.vision.prompts import Pixels, VisionPrompts
from steering.fingerprint import fingerprint
from steering.hidden.bank import HiddenBank
from steering.hidden.rows import Reading, RowGuard
from steering.prompt import Prompt

BATCH = 32


class Answers(Protocol):
    """Greedy answers to prompts, in their order."""

    def __call__(
        self, prompts: Sequence[str | Prompt], *, max_tokens: int, what: str, progress: Stages
    ) -> list[GuardedAnswer]: ...


class ChatModel(ABC):
    """A language model with its tokenizer, for fits and evals, on either engine.

    Prompts are single user messages in the model's chat template; `vision` is the family of a model
    that takes images in them, None for text alone.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        name: str,
        end_tokens: frozenset[int],
        vision: VisionFamily | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.vision = vision
        self._tokens = PromptTokenizer(tokenizer, names=vision.names if vision else ())
        self._prompts = None if vision is None else VisionPrompts(tokenizer, vision)
        self.name = name
        self.end_tokens = end_tokens

    @property
    def scores_texts(self) -> bool:
        """Whether the engine has `likelihoods`."""
        return False

    @property
    def sees(self) -> bool:
        """Whether the model takes images."""
        return self._prompts is not None

    def prompt(self, text: str, images: Sequence[Pixels] = (), *, system: str = "") -> Prompt:
        """The prompt of one user message in the chat template, with the generation prompt, behind a
        message `system`, if there is one.

        `images`, uint8 `[height, width, 3]`, stand before the text. Raises ModelError for images
        where the model takes none and for a model without a chat template, and ValueError for an
        image of a size that it does not take.
        """
        if self.tokenizer.chat_template is None:
            raise ModelError(
                f"model {self.name!r} has no chat template, in which prompts are asked: it is a "
                "base model; take one that is tuned for chats, or put a chat_template.jinja into "
                "its folder"
            )
        before = [{"role": "system", "content": system}] if system else []
        if self._prompts is None:
            if images:
                raise ModelError(f"model {self.name!r} takes no images: leave them out")
            return Prompt(tuple(self._tokens.chat([*before, {"role": "user", "content": text}])))
        parts: list[dict[str, Any]] = [{"type": "image", "image": each} for each in images]
        content: Any = [*parts, {"type": "text", "text": text}] if parts else text
        return self._prompts.chat([*before, {"role": "user", "content": content}])

    def given(self, prompts: Sequence[str | Prompt], *, by_turn: bool = False) -> list[Prompt]:
        """Prompts as they are, and those of texts; `by_turn`: guards decide on the text alone, not
        on what the chat template writes before it."""
        given = [self.prompt(each) if isinstance(each, str) else each for each in prompts]
        if not by_turn:
            return given
        return [
            replace(prompt, turn=self._before(text, prompt)) if isinstance(text, str) else prompt
            for text, prompt in zip(prompts, given, strict=True)
        ]

    def _before(self, text: str, prompt: Prompt) -> int:
        asked = [{"role": "user", "content": text}]
        return self._tokens.before_turn(asked, 0, prompt.tokens)

    def text(self, tokens: Sequence[int]) -> str:
        """Generated tokens as text, without special tokens."""
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=True))

    def ids(self, text: str) -> list[int]:
        """Token ids of `text`, without special tokens."""
        return self._tokens.text(text, special=False)

    @property
    @abstractmethod
    def fitted_model(self) -> FittedModel:
        """The model's entry in the metadata of artifacts."""

    @property
    @abstractmethod
    def depth(self) -> int:
        """Number of decoder layers."""

    @property
    @abstractmethod
    def width(self) -> int:
        """Width of the residual stream."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """The device of the model, where the tensors of guards must be."""

    @property
    @abstractmethod
    def precision(self) -> str:
        """The type of the numbers that it computes with."""

    @abstractmethod
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
        """Greedy answers to all prompts, in order; each row carries `guards` of `bank`.

        A string is the prompt of that text alone. `what` names the stage for `progress`.
        """

    def likelihoods(
        self,
        prompts: Sequence[Prompt],
        texts: Sequence[Sequence[str]],
        *,
        what: str,
        progress: Stages,
        bank: HiddenBank | None = None,
        guards: Sequence[RowGuard] = (),
    ) -> list[Losses]:
        """For each prompt how likely some `texts` are as its whole answer, with guards as in
        `answer`; see `continuation_losses`. Raises ValueError for a text without tokens."""
        raise NotImplementedError(f"{type(self).__name__} has no likelihoods: see scores_texts")

    @abstractmethod
    def states(
        self, sequences: Sequence[Tokens], layers: Sequence[int], advance: Advance = nothing
    ) -> Iterator[tuple[int, Tensor]]:
        """For each sequence of tokens, in any order, its index and the residual stream after
        `layers`, `[tokens, len(layers), width]`, float32 on the CPU."""

    @abstractmethod
    def losses(self, sequences: Sequence[Tokens]) -> Iterator[tuple[int, Tensor]]:
        """For each sequence of tokens, in any order, its index and `[tokens - 1]`, -log p of
        every token but the first, on the CPU."""


class TransformersChat(ChatModel):
    """A ChatModel on the transformers engine."""

    def __init__(
        self, model: Any, tokenizer: Any, *, name: str, vision: VisionFamily | None = None
    ) -> None:
        super().__init__(
            tokenizer,
            name=name,
            end_tokens=end_tokens(
                model.generation_config.eos_token_id,
                tokenizer,
                model.get_input_embeddings().num_embeddings,
            ),
            vision=vision,
        )
        self.model = model

    @classmethod
    def load(
        cls,
        source: str,
        *,
        dtype: str = "float32",
        device: str = "auto",
        device_map: str | None = None,
        quantization: str | None = None,
    ) -> TransformersChat:
        """Load a model by its name in the store, its directory, its GGUF file or its hub name.
        Raises ModelError."""
        resolved = source_of(source, "language")
        try:
            model, tokenizer, vision = load_language_model(
                resolved,
                dtype=dtype,
                device=device,
                device_map=device_map,
                quantization=quantization,
            )
        except ValueError as error:
            raise ModelError(f"model {source!r}: {error}") from error
        name = f"{source} ({quantization} at load)" if quantization else source
        return cls(model, tokenizer, name=name, vision=vision)

    @classmethod
    def configured(cls, entry: ModelConfig) -> TransformersChat:
        """Load a model as a server with this entry of its configuration does. Raises ModelError."""
        return cls.load(
            entry.source,
            dtype=entry.dtype,
            device=entry.device,
            device_map=entry.device_map,
            quantization=entry.quantization,
        )

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
        return int(self.model.config.get_text_config().num_hidden_layers)

    @property
    def width(self) -> int:
        return int(self.model.config.get_text_config().hidden_size)

    @property
    def device(self) -> torch.device:
        device: torch.device = next(self.model.parameters()).device
        return device

    @property
    def precision(self) -> str:
        return str(self.model.dtype)

    def answer(
        self,
        prompts: Sequence[str | Prompt],
        *,
        max_tokens: int,
        what: str,
        progress: Stages,
        bank: HiddenBank | None = None,
        guards: Sequence[RowGuard] = (),
        scored: Sequence[tuple[int, ...]] = (),
        policy: AnswerPolicy | None = None,
    ) -> list[GuardedAnswer]:
        """As `ChatModel.answer`; `scored` are tokens for each prompt, whose log-probabilities as
        the first token of the answer are wanted; empty where none are. Answers go back or end as
        `policy` says."""
        samplings = [RowSampling(scored=tokens) for tokens in scored or [()] * len(prompts)]
        asked = self.given(prompts, by_turn=policy is not None and policy.by_turn)
        engine = TransformersEngine(
            self.model, bank or HiddenBank(), capacity=BATCH, vision=self.vision
        )
        try:
            rows = answers(
                engine,
                [
                    RowStart(prompt, guards, sampling)
                    for prompt, sampling in zip(asked, samplings, strict=True)
                ],
                max_tokens=max_tokens,
                end_tokens=self.end_tokens,
                advance=progress(what, len(prompts)),
                policy=policy,
                sentences=Sentences(self.tokenizer),
            )
        finally:
            engine.close()
        return [
            GuardedAnswer(
                f"{self.text(row.tokens)}{row.message}", row.tokens, row.readings, row.scores
            )
            for row in rows
        ]

    @property
    def scores_texts(self) -> bool:
        return True

    def likelihoods(
        self,
        prompts: Sequence[Prompt],
        texts: Sequence[Sequence[str]],
        *,
        what: str,
        progress: Stages,
        bank: HiddenBank | None = None,
        guards: Sequence[RowGuard] = (),
    ) -> list[Losses]:
        return continuation_losses(
            self.model,
            [
                Continued(prompt, [self.ids(text) for text in options])
                for prompt, options in zip(prompts, texts, strict=True)
            ],
            end_tokens=self.end_tokens,
            bank=bank or HiddenBank(),
            guards=guards,
            vision=self.vision,
            advance=progress(what, len(prompts)),
        )

    def states(
        self, sequences: Sequence[Tokens], layers: Sequence[int], advance: Advance = nothing
    ) -> Iterator[tuple[int, Tensor]]:
        return token_states(self.model, sequences, layers, vision=self.vision, advance=advance)

    def losses(self, sequences: Sequence[Tokens]) -> Iterator[tuple[int, Tensor]]:
        return token_losses(self.model, sequences, vision=self.vision)


@dataclass(frozen=True, slots=True)
class GuardedAnswer:
    """One answer: its text, its token ids, the reading of each guard by name, and the
    log-probabilities that were asked for."""

    text: str
    tokens: tuple[int, ...]
    readings: dict[str, Reading]
    scores: tuple[float, ...] = ()

    @property
    def fired(self) -> bool:
        """Whether any guard fired."""
        return any(reading.fired for reading in self.readings.values())


def end_tokens(
    configured: int | list[int] | None, tokenizer: Any, vocabulary: int
) -> frozenset[int]:
    """Every token id that ends an answer; `configured` is the generation configuration's
    `eos_token_id`, of which some name tokens outside of the `vocabulary` of the model."""
    ids = configured if isinstance(configured, list) else [configured]
    return frozenset(
        t for t in (*ids, tokenizer.eos_token_id) if t is not None and 0 <= t < vocabulary
    )
