"""The text side of a pipeline: encoding prompts, windows past an encoder's length, placeholders."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from steering.engines.diffusion.families.readers import Reader
from steering.engines.diffusion.placeholders import Learned, Placeholders, Vocabulary
from steering.images.conditioning import Conditioning, concatenated
from steering.images.textual_inversion import LARGEST, EmbeddingError, EmbeddingLimits

_BATCH = 16
"""The number of windows of one prompt that are encoded at once."""


class TextEncoding(ABC):
    """Prompts to conditionings, by the text encoders of `pipeline`."""

    parts: ClassVar[tuple[int, ...]] = (0,)
    """The indices of the prompt's tensors in the result of `encode_prompt`."""
    pipeline: Any

    # -- the parts of a family --------------------------------------------------------------------

    @property
    @abstractmethod
    def readers(self) -> tuple[Reader, ...]:
        """One for each tokenizer."""

    @abstractmethod
    def _encode_prompt(self, prompts: list[str]) -> Sequence[Any]: ...

    @abstractmethod
    def _states(self, parts: Sequence[Tensor]) -> dict[str, Tensor]:
        """The streams in the result of `encode_prompt`."""

    @abstractmethod
    def put_together(self, text: Conditioning) -> tuple[Tensor, ...]:
        """The inverse of `take_apart`: the input of the denoiser, in the order of `parts`."""

    def text_masks(self, text: Conditioning) -> tuple[Tensor, ...]:
        """The masks of real tokens of each consecutive part of the text that the denoiser attends
        to, `[rows, tokens]`. Pooled vectors are not among them."""
        (mask,) = (mask for mask in text.masks.values() if mask.shape[1] > 1)
        return (mask,)

    def cleaned(self, texts: Sequence[str]) -> list[str]:
        """The texts as the pipeline passes them to its tokenizers."""
        return list(texts)

    def unconditional(self, negative: Sequence[str]) -> Conditioning:
        """The unconditional side of classifier-free guidance; an empty text stands for the
        pipeline's default."""
        return self.encode(negative)

    # -- shared by all families -------------------------------------------------------------------

    @property
    def encoders(self) -> Mapping[str, nn.Module]:
        """The text encoders, by the pipeline's names for them."""
        names = (name for name in self.pipeline.components if name.startswith("text_encoder"))
        encoders = {name: getattr(self.pipeline, name) for name in names}
        return {name: encoder for name, encoder in encoders.items() if encoder is not None}

    def encode(
        self, prompts: Sequence[str], learned: Sequence[Learned] | None = None
    ) -> Conditioning:
        """The conditioning of the prompts' first windows.

        `learned` has the placeholders of each prompt with their vectors; the result is
        differentiable with respect to these. Raises EmbeddingError for vectors that the model
        cannot take.
        """
        with self._substituted(prompts, learned) as texts:
            return self._read(texts)

    def _read(self, prompts: Sequence[str]) -> Conditioning:
        encoded = self._encode_prompt(list(prompts))
        texts = {reader.argument: prompts for reader in self.readers}
        return self.take_apart([encoded[part] for part in self.parts], texts)

    def take_apart(
        self, parts: Sequence[Tensor], texts: Mapping[str, Sequence[str]] | None
    ) -> Conditioning:
        """The streams in the result of `encode_prompt` for `texts`, by its arguments' names.

        Where only the embeddings are known, every token counts as real.
        """
        states = self._states(parts)
        masks = {name: torch.ones(state.shape[:2]).bool() for name, state in states.items()}
        for reader in self.readers:
            state = states[reader.stream]
            if texts is not None and state.shape[1] > 1:
                cleaned = self.cleaned(texts[reader.argument])
                converted = [self._converted(text, reader) for text in cleaned]
                masks[reader.stream] = reader.mask(converted, state.shape[1])
        return Conditioning(
            states, {name: mask.to(states[name].device) for name, mask in masks.items()}
        )

    def overflow(
        self, prompts: Sequence[str], learned: Sequence[Learned] | None = None
    ) -> list[Conditioning | None]:
        """The conditioning of each prompt past the encoders' windows: one row a window, None where
        all of it fits.

        With several encoders, all of them encode what any of them cuts off. `learned` is as in
        `encode`.
        """
        overflow = []
        for prompt, vectors in zip(prompts, learned or [{}] * len(prompts), strict=True):
            with self._substituted([prompt], [vectors]) as texts:
                overflow.append(self._windows(texts))
        return overflow

    def overflow_of(self, texts: Mapping[str, Sequence[str]]) -> list[Conditioning | None]:
        """The same where each argument of `encode_prompt` has other texts."""
        rows = zip(*texts.values(), strict=True)
        return [self._windows(list(dict.fromkeys(row))) for row in rows]

    def _windows(self, texts: Sequence[str]) -> Conditioning | None:
        windows = list(
            dict.fromkeys(
                window
                for reader in self.readers
                for text in self.cleaned(texts)
                for window in reader.windows(self._converted(text, reader))
            )
        )
        batches = [windows[at : at + _BATCH] for at in range(0, len(windows), _BATCH)]
        return concatenated([self._read(batch) for batch in batches]) if batches else None

    def content(self, prompt: str) -> Tensor:
        """`[tokens]`, bool: True at the tokens of the prompt itself among those that the denoiser
        attends to, False at padding and special tokens."""
        text = self.encode([prompt])
        words = {name: torch.zeros_like(mask) for name, mask in text.masks.items()}
        for reader in self.readers:
            tokens = words[reader.stream].shape[1]
            if tokens > 1:
                (converted,) = (self._converted(t, reader) for t in self.cleaned([prompt]))
                mask = reader.words(converted, tokens)
                words[reader.stream] = mask.to(text.masks[reader.stream].device)
        marked = text.with_states(
            {name: words[name][..., None].expand_as(s).to(s) for name, s in text.states.items()}
        )
        # in the denoiser's input, a token is marked where any of its streams is
        return self.put_together(marked)[0][0].abs().amax(-1) > 0

    def _converted(self, text: str, reader: Reader) -> str:
        """The text with the tokens of the pipeline's textual inversions in place of their names."""
        convert = getattr(self.pipeline, "maybe_convert_prompt", None)
        return text if convert is None else str(convert(text, reader.tokenizer))

    # -- vectors of one request -------------------------------------------------------------------

    @property
    def embeddings(self) -> Tensor | None:
        """The input embeddings `[vocabulary, width]` of the text encoder.

        None for a pipeline of several encoders: learned embeddings are for one.
        """
        encoders = list(self.encoders.values())
        if len(encoders) != 1:
            return None
        table: Tensor = encoders[0].get_input_embeddings().weight  # type: ignore[operator]
        return table

    @cached_property
    def embedding_limits(self) -> EmbeddingLimits | None:
        """The limits of the vectors of a request; None if it can have none."""
        if (table := self.embeddings) is None:
            return None
        norms = table.detach().float().norm(dim=1)
        largest = float(norms[norms.isfinite()].max())
        return EmbeddingLimits(table.shape[1], LARGEST * largest)

    def check_learned(self, prompt: str, learned: Learned) -> None:
        """Raise EmbeddingError if the model cannot take the vectors of a prompt."""
        if not learned:
            return
        if (limits := self.embedding_limits) is None:
            raise self._several_encoders()
        limits.check(prompt, {n: v.detach().cpu().float().numpy() for n, v in learned.items()})
        with self._substituted([prompt], [learned]):
            pass

    @cached_property
    def _vocabulary(self) -> Vocabulary:
        return Vocabulary(self.readers[0].tokenizer)

    @contextmanager
    def _substituted(
        self, prompts: Sequence[str], learned: Sequence[Learned] | None
    ) -> Iterator[Sequence[str]]:
        """The prompts with substitute words for placeholders, whose vectors the encoder reads
        inside the context."""
        if learned is None or not any(learned):
            yield prompts
            return
        if self.embeddings is None:
            raise self._several_encoders()
        (encoder,), (reader,) = self.encoders.values(), self.readers
        placeholders = Placeholders(
            self._vocabulary,
            prompts,
            learned,
            lambda text: self._converted(self.cleaned([text])[0], reader),
        )
        with placeholders.inside(encoder):
            yield placeholders.texts

    def _several_encoders(self) -> EmbeddingError:
        count = len(self.encoders)
        return EmbeddingError(
            f"it has {count} text encoders: learned embeddings are for models with one"
        )
