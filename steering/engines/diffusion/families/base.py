"""What the families of diffusers pipelines have in common.

A family says where a pipeline keeps its text embeddings, pooled embeddings, cross-attention and
latents. It uses the pipeline's own parts and its own `encode_prompt`; nothing is copied from them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from inspect import signature
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from steering.engines.diffusion.placeholders import Learned, Placeholders, Vocabulary
from steering.images.conditioning import Conditioning, concatenated
from steering.images.textual_inversion import LARGEST, EmbeddingError, EmbeddingLimits

_BATCH = 16
"""Windows of one prompt that are encoded at once."""
_ONE_ENCODER = "learned embeddings are for models with one"


@dataclass(frozen=True)
class Reader:
    """One tokenizer of a pipeline.

    It reads `argument` of `encode_prompt` for `stream`, `tokens` of it at most, its own marks
    included.
    """

    stream: str
    argument: str
    tokenizer: Any
    tokens: int

    def windows(self, text: str) -> list[str]:
        """What `text` says past the first window, in windows that share a quarter of their tokens.

        So a word or a phrase that a border cuts is whole in one of them.
        """
        ids = self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids
        room = self.tokens - self.tokenizer.num_special_tokens_to_add()
        step = room - room // 4
        starts = range(step, len(ids) - room + step, step)
        pieces = [ids[start : start + room] for start in starts]
        return [self.tokenizer.decode(p, clean_up_tokenization_spaces=False) for p in pieces]

    def words(self, text: str, tokens: int) -> Tensor:
        """`[1, tokens]`: True at the text's own tokens, False at marks and padding."""
        ids = self.tokenizer(text, verbose=False).input_ids[:tokens]
        marks = set(self.tokenizer.all_special_ids)
        own = [token not in marks for token in ids] + [False] * (tokens - len(ids))
        return torch.tensor([own])

    def mask(self, texts: Sequence[str], tokens: int) -> Tensor:
        """`[texts, tokens]`: True at what is no padding."""
        batch = self.tokenizer(
            list(texts),
            padding="max_length",
            max_length=tokens,
            truncation=True,
            return_tensors="pt",
            verbose=False,
        )
        mask: Tensor = batch["attention_mask"]
        return mask.bool()


class Family(ABC):
    """A loaded text-to-image or text-to-video pipeline. Not thread-safe.

    Images are `height` by `width`, None for the pipeline's own default. Raises ValueError where
    the pipeline lacks a part, or cannot draw that size.
    """

    parts: ClassVar[tuple[int, ...]] = (0,)
    """Which of the tensors that `encode_prompt` returns are the prompt's."""
    separate_negative: ClassVar[bool] = False
    """Whether the pipeline encodes its negative prompt by a second `encode_prompt`."""
    default_guidance: str = "guidance_scale"
    """The argument of the pipeline's call that is its guidance."""

    def __init__(self, pipeline: Any, *, height: int | None, width: int | None) -> None:
        for name in self._needs:
            if getattr(pipeline, name, None) is None:
                raise ValueError(f"{type(pipeline).__name__} without a {name} cannot be guarded")
        self.pipeline = pipeline
        default = self._default_size()
        self.height, self.width = height or default[0], width or default[1]
        if self.height % self._multiple or self.width % self._multiple:
            raise ValueError(
                f"{type(pipeline).__name__} draws sizes that are multiples of {self._multiple}, "
                f"not {self.width}x{self.height}"
            )

    # -- what each family says of itself --------------------------------------------------------

    _needs: ClassVar[tuple[str, ...]]

    @property
    @abstractmethod
    def denoiser(self) -> Any:
        """The network that is run at each step."""

    @property
    @abstractmethod
    def readers(self) -> tuple[Reader, ...]:
        """One a tokenizer."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Of one row's noise, before it is packed."""

    @property
    @abstractmethod
    def _multiple(self) -> int:
        """What height and width must be multiples of."""

    @abstractmethod
    def _default_size(self) -> tuple[int, int]: ...

    @abstractmethod
    def _encode_prompt(self, prompts: list[str]) -> Sequence[Any]: ...

    @abstractmethod
    def _states(self, parts: Sequence[Tensor]) -> dict[str, Tensor]:
        """The streams in what `encode_prompt` returned."""

    @abstractmethod
    def put_together(self, text: Conditioning) -> tuple[Tensor, ...]:
        """The other way round: what the denoiser takes, in the order of `parts`."""

    def text_masks(self, text: Conditioning) -> tuple[Tensor, ...]:
        """Which tokens are real in each stretch of the text that the denoiser attends to, one
        behind the other: `[rows, tokens]`. A pooled vector is none of it."""
        (mask,) = (mask for mask in text.masks.values() if mask.shape[1] > 1)
        return (mask,)

    @abstractmethod
    def predict(
        self, latents: Tensor, timesteps: Tensor, text: Conditioning, guidance: Tensor
    ) -> Tensor:
        """The denoiser's output for rows at timesteps `[rows]`, without classifier-free guidance.

        `guidance [rows]` is for networks that were distilled with it.
        """

    @abstractmethod
    def cross_attention(self) -> list[tuple[str, nn.Module]]:
        """The modules in which images attend to the text, by their name in the denoiser."""

    @abstractmethod
    def _image(self, latents: Tensor) -> NDArray[np.float32]:
        """In 0..1, `[rows, height, width, 3]`, for videos `[rows, frames, height, width, 3]`."""

    # -- what they share ------------------------------------------------------------------------

    @property
    def scheduler(self) -> Any:
        return self.pipeline.scheduler

    @property
    def encoders(self) -> Mapping[str, nn.Module]:
        """The text encoders, by the pipeline's names for them."""
        names = (name for name in self.pipeline.components if name.startswith("text_encoder"))
        found = {name: getattr(self.pipeline, name) for name in names}
        return {name: encoder for name, encoder in found.items() if encoder is not None}

    @property
    def autoencoder(self) -> nn.Module:
        """What gives the latents their meaning."""
        found: nn.Module = self.pipeline.vae
        return found

    @property
    def readable(self) -> Mapping[str, nn.Module]:
        """The layers whose attention can be read: those that project queries of the image alone
        and keys of the text alone. Not Flux's single-stream blocks, which project both at once."""
        return {
            name: module
            for name, module in self.cross_attention()
            if getattr(module, "add_k_proj", None) is not None
            or getattr(module, "is_cross_attention", False)
        }

    @property
    def networks(self) -> dict[str, nn.Module]:
        """Everything with weights that an image is made by."""
        denoiser: nn.Module = self.denoiser
        return {**self.encoders, "denoiser": denoiser, "autoencoder": self.autoencoder}

    @property
    def channels(self) -> int:
        """Of unpacked latents."""
        return self.shape[0]

    @property
    def distilled(self) -> bool:
        """Whether guidance is an input of the network, with no unconditional row beside."""
        return False

    @property
    def refusal(self) -> str | None:
        """Why the engine cannot run the pipeline, though its prompts can be guarded."""
        return None

    @property
    def device(self) -> torch.device:
        return torch.device(next(self.denoiser.parameters()).device)

    @property
    def dtype(self) -> torch.dtype:
        found: torch.dtype = next(self.denoiser.parameters()).dtype
        return found

    @cached_property
    def defaults(self) -> tuple[int, float]:
        """Steps and guidance of the pipeline's own call."""
        given = signature(type(self.pipeline).__call__).parameters
        steps, guidance = given["num_inference_steps"], given[self.default_guidance]
        return int(steps.default), float(guidance.default)

    @cached_property
    def max_tokens(self) -> int:
        """`max_sequence_length` of the pipeline's own call."""
        return int(
            signature(type(self.pipeline).__call__).parameters["max_sequence_length"].default
        )

    def arrange(self, scheduler: Any, steps: int) -> None:
        """Set the timesteps of `scheduler` as the pipeline does."""
        scheduler.set_timesteps(steps)

    def encode(
        self, prompts: Sequence[str], learned: Sequence[Learned] | None = None
    ) -> Conditioning:
        """What the text encoders say of the prompts' first windows.

        `learned` has, for each prompt, placeholders that it holds with their vectors; the result
        is differentiable with respect to these. Raises EmbeddingError where they do not go.
        """
        with self._stood_in(prompts, learned) as texts:
            return self._read(texts)

    def _read(self, prompts: Sequence[str]) -> Conditioning:
        encoded = self._encode_prompt(list(prompts))
        texts = {reader.argument: prompts for reader in self.readers}
        return self.take_apart([encoded[part] for part in self.parts], texts)

    @property
    def embeddings(self) -> Tensor | None:
        """The input embeddings `[vocabulary, width]` of the text encoder.

        None where there are several encoders: learned embeddings are for one.
        """
        encoders = list(self.encoders.values())
        if len(encoders) != 1:
            return None
        found: Tensor = encoders[0].get_input_embeddings().weight  # type: ignore[operator]
        return found

    @cached_property
    def embedding_limits(self) -> EmbeddingLimits | None:
        """What a request's own embeddings must keep to; None where it can bring none."""
        if (table := self.embeddings) is None:
            return None
        norms = table.detach().float().norm(dim=1)
        largest = float(norms[norms.isfinite()].max())
        return EmbeddingLimits(table.shape[1], LARGEST * largest)

    def check_learned(self, prompt: str, learned: Learned) -> None:
        """Raise EmbeddingError where a prompt's embeddings are not to be encoded."""
        if not learned:
            return
        if (limits := self.embedding_limits) is None:
            raise EmbeddingError(f"it has {len(self.encoders)} text encoders: {_ONE_ENCODER}")
        limits.check(prompt, {n: v.detach().cpu().float().numpy() for n, v in learned.items()})
        with self._stood_in([prompt], [learned]):
            pass

    @cached_property
    def _vocabulary(self) -> Vocabulary:
        return Vocabulary(self.readers[0].tokenizer)

    @contextmanager
    def _stood_in(
        self, prompts: Sequence[str], learned: Sequence[Learned] | None
    ) -> Iterator[Sequence[str]]:
        """The prompts as they are to be read while the context lasts."""
        if learned is None or not any(learned):
            yield prompts
            return
        if self.embeddings is None:
            raise EmbeddingError(f"it has {len(self.encoders)} text encoders: {_ONE_ENCODER}")
        (encoder,), (reader,) = self.encoders.values(), self.readers
        words = Placeholders(
            self._vocabulary,
            prompts,
            learned,
            lambda text: self._converted(self.cleaned([text])[0], reader),
        )
        with words.inside(encoder):
            yield words.texts

    def unconditional(self, negative: Sequence[str]) -> Conditioning:
        """What classifier-free guidance leads away from; an empty text is the pipeline's own."""
        return self.encode(negative)

    def overflow(
        self, prompts: Sequence[str], learned: Sequence[Learned] | None = None
    ) -> list[Conditioning | None]:
        """What prompts say past the encoders' windows: one row a window, None where all fits.

        With several encoders, whatever any of them cuts off is shown to all. `learned` is as in
        `encode`.
        """
        found = []
        for prompt, own in zip(prompts, learned or [{}] * len(prompts), strict=True):
            with self._stood_in([prompt], [own]) as texts:
                found.append(self._windows(texts))
        return found

    def overflow_of(self, texts: Mapping[str, Sequence[str]]) -> list[Conditioning | None]:
        """The same where each argument of `encode_prompt` has texts of its own."""
        rows = zip(*texts.values(), strict=True)
        return [self._windows(list(dict.fromkeys(row))) for row in rows]

    def _windows(self, texts: Sequence[str]) -> Conditioning | None:
        pieces = dict.fromkeys(
            piece
            for reader in self.readers
            for text in self.cleaned(texts)
            for piece in reader.windows(self._converted(text, reader))
        )
        found = list(pieces)
        batches = [found[at : at + _BATCH] for at in range(0, len(found), _BATCH)]
        return concatenated([self._read(batch) for batch in batches]) if batches else None

    def content(self, prompt: str) -> Tensor:
        """`[tokens]`, bool: which of the tokens that the denoiser attends to are the prompt's own.

        Neither padding nor a tokenizer's marks.
        """
        text = self.encode([prompt])
        own = {name: torch.zeros_like(mask) for name, mask in text.masks.items()}
        for reader in self.readers:
            if own[reader.stream].shape[1] > 1:
                (said,) = (self._converted(t, reader) for t in self.cleaned([prompt]))
                words = reader.words(said, own[reader.stream].shape[1])
                own[reader.stream] = words.to(text.masks[reader.stream].device)
        marked = text.with_states(
            {name: own[name][..., None].expand_as(s).to(s) for name, s in text.states.items()}
        )
        # put together as the denoiser takes them, a token is marked where any of its streams is
        return self.put_together(marked)[0][0].abs().amax(-1) > 0

    def take_apart(
        self, parts: Sequence[Tensor], texts: Mapping[str, Sequence[str]] | None
    ) -> Conditioning:
        """The streams in what `encode_prompt` returned for `texts`, by its arguments' names.

        Where only the embeddings are known, every token counts as real.
        """
        states = self._states(parts)
        masks = {name: torch.ones(state.shape[:2]).bool() for name, state in states.items()}
        for reader in self.readers:
            state = states[reader.stream]
            if texts is not None and state.shape[1] > 1:
                own = [self._converted(t, reader) for t in self.cleaned(texts[reader.argument])]
                masks[reader.stream] = reader.mask(own, state.shape[1])
        return Conditioning(
            states, {name: mask.to(states[name].device) for name, mask in masks.items()}
        )

    def cleaned(self, texts: Sequence[str]) -> list[str]:
        """The texts as the pipeline gives them to its tokenizers."""
        return list(texts)

    def noise(self, seeds: Sequence[int], draw: int = 0) -> Tensor:
        """Unit noise `[rows, ...]`, float32, from one generator a row.

        Draw 0 is the pipeline's own, the next ones are what its generator gives behind it.
        """
        made = [torch.Generator().manual_seed(seed) for seed in seeds]
        drawn = [[torch.randn(self.shape, generator=g) for _ in range(draw + 1)] for g in made]
        return self.packed(torch.stack([each[draw] for each in drawn])).to(self.device)

    def decode(self, latents: Tensor) -> NDArray[np.uint8]:
        """Images `[rows, height, width, 3]`; videos `[rows, frames, height, width, 3]`."""
        # rounded as diffusers does on its way to PIL
        return (self._image(latents) * 255).round().astype(np.uint8)

    @torch.no_grad()
    def encode_image(self, pixels: Tensor) -> Tensor:
        """The latents of images `[rows, height, width, 3]` in 0..1, in the denoiser's scale.

        `[rows, channels, height, width]`, float32: the other way round to what `decode` does first,
        and what `unpacked` gives of finished latents. Where the autoencoder gives a distribution it
        is the mode: nothing is drawn. Raises ValueError for another shape, and for a family that
        makes videos.
        """
        shape = (self.height, self.width, 3)
        if pixels.ndim != 4 or tuple(pixels.shape[1:]) != shape:
            raise ValueError(f"images must be [rows, {shape}], not {tuple(pixels.shape)}")
        vae: Any = self.autoencoder
        signed = pixels.movedim(-1, 1).to(device=self.device, dtype=vae.dtype) * 2 - 1
        encoded = vae.encode(signed)
        found = getattr(encoded, "latent_dist", None)
        latents: Tensor = encoded.latents if found is None else found.mode()
        return self._scaled(latents).float()

    def _scaled(self, latents: Tensor) -> Tensor:
        """What the autoencoder says of images, in the denoiser's scale."""
        config: Any = self.autoencoder.config
        scaled: Tensor = (latents - (config.get("shift_factor") or 0.0)) * config.scaling_factor
        return scaled

    def packed(self, latents: Tensor) -> Tensor:
        """Latents `[rows, channels, (frames,) height, width]` as the denoiser takes them."""
        return latents

    def unpacked(self, latents: Tensor) -> Tensor:
        """The other way round."""
        return latents

    def _converted(self, text: str, reader: Reader) -> str:
        """With the tokens of textual inversion in place of their names."""
        convert = getattr(self.pipeline, "maybe_convert_prompt", None)
        return text if convert is None else str(convert(text, reader.tokenizer))
