"""A loaded language model with its tokenizer, as fitting and evaluation use it. Needs torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from guard.errors import ModelError
from guard.models import resolve_source
from guard.progress import Stages
from steering.bank import Bank
from steering.engines.loading import load_language_model
from steering.engines.offline import answers
from steering.engines.sampling import RowSampling
from steering.engines.transformers import RowStart, TransformersEngine
from steering.rows import Reading, RowGuard

BATCH = 32


class Chat:
    """A model with its tokenizer: prompts as the model's own chat template writes them."""

    def __init__(self, model: Any, tokenizer: Any, *, name: str) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.name = name
        self.end_tokens = end_tokens(model.generation_config, tokenizer)

    @classmethod
    def load(cls, source: str, *, device: str = "auto") -> Chat:
        """From an added model's name, a directory or a hub name. Raises ModelError."""
        try:
            model, tokenizer = load_language_model(resolve_source(source), device=device)
        except ValueError as error:
            raise ModelError(f"model {source!r}: {error}") from error
        return cls(model, tokenizer, name=source)

    @property
    def depth(self) -> int:
        """Number of decoder layers."""
        return int(self.model.config.num_hidden_layers)

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

    def answer(
        self,
        prompts: Sequence[str],
        *,
        max_tokens: int,
        what: str,
        progress: Stages,
        bank: Bank | None = None,
        guards: Sequence[RowGuard] = (),
    ) -> list[Said]:
        """Greedy answers to all prompts, each row carrying `guards` of `bank`."""
        engine = TransformersEngine(self.model, bank or Bank([]), capacity=BATCH)
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
        return [Said(self.text(row.tokens), row.tokens, row.readings) for row in given]


@dataclass(frozen=True, slots=True)
class Said:
    """One answer: its text, its token ids, and what each guard read on the way."""

    text: str
    tokens: tuple[int, ...]
    readings: dict[str, Reading]

    @property
    def fired(self) -> bool:
        """Whether any guard fired."""
        return any(reading.fired for reading in self.readings.values())


def end_tokens(generation: Any, tokenizer: Any) -> frozenset[int]:
    """Every token id that ends an answer; `generation` is the model's `GenerationConfig`."""
    stated = getattr(generation, "eos_token_id", None)
    listed = stated if isinstance(stated, list) else [stated]
    return frozenset(t for t in (*listed, tokenizer.eos_token_id) if t is not None)
