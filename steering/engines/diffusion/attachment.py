"""Guards on a diffusers pipeline that somebody else runs: `pipeline("a prompt")` as it is.

A pipeline encodes every prompt through its own `encode_prompt`, and embeddings that a caller passes
go through there too: wrapped on the instance, it gives guarded embeddings to all that follows. The
finished latents are what its scheduler's `step` has returned last when the pipeline frees its
hooks, which is the last thing that a call does before it gives its images away. Overlays hook the
denoiser's projections, whose rows are the call's prompts once, or the negative and the positive
half of them. What cannot be followed (guards that act on the guidance, embeddings of another
layout, image prompts) raises Unfollowed instead of passing unguarded.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import wraps
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from steering.engines.diffusion.families import Family
from steering.engines.diffusion.seams.projections import ProjectionSeam
from steering.engines.transformers.attachment import Unfollowed
from steering.hidden.rows import RowGuard
from steering.images.conditioning import Conditioning
from steering.images.embedding import Applied, EmbeddingBank, ImageReading
from steering.images.output import OutputBank
from steering.images.projection import OverlayBank

_IMAGES = "prepare_ip_adapter_image_embeds"
_END = "maybe_free_model_hooks"
_REPEATS = ("num_images_per_prompt", "num_videos_per_prompt")


class PipelineAttachment:
    """Wraps the `encode_prompt` of a family's pipeline until `remove`; every row carries `guards`.

    `after(attachment)` is called when a prompt's guards have decided, and again when those of
    `finished` have seen what was drawn; it may raise to draw or give nothing. `unfollowed` names
    guards that act on each step, `overlays` has those that act inside the denoiser. Raises
    Unfollowed where one of the former is to act, or looks there too, and ValueError for overlays
    that do not go.

    Embeddings that come without their prompt are guarded as they are: what is padding in them is
    not known, and counts as text.
    """

    def __init__(
        self,
        family: Family,
        bank: EmbeddingBank,
        guards: Sequence[RowGuard],
        after: Callable[[PipelineAttachment], None],
        *,
        unfollowed: Sequence[str] = (),
        finished: OutputBank | None = None,
        overlays: OverlayBank | None = None,
    ) -> None:
        lost = [
            guard.name
            for guard in guards
            if guard.name in unfollowed and (guard.acts or guard.name not in bank.names)
        ]
        if lost:
            raise Unfollowed(
                f"guard {lost[0]} acts on each step, which only the engine (guard serve) "
                "follows: leave it out, or use a guard of the prompt's embedding"
            )
        pipeline = family.pipeline
        self._family, self._pipeline = family, pipeline
        self._bank, self._after = bank, after
        self._finished = finished or OutputBank()
        self._guards = tuple(guard for guard in guards if guard.name not in self._finished)
        self._watching = tuple(guard for guard in guards if guard.name in self._finished)
        self.began = time.monotonic()
        """When the last prompts came in."""
        self._readings: tuple[dict[str, ImageReading], ...] = ()
        self._finite: list[bool] = []
        self._begun = self._looking = False
        self._encode: Callable[..., Sequence[Any]] = pipeline.encode_prompt
        wrappers = {
            "encode_prompt": self._encode_prompt,
            "check_inputs": self._checked_inputs,
        }
        if self._guards:
            wrappers[_IMAGES] = self._refuse_images
        self._check = pipeline.check_inputs
        self._replaced: list[tuple[Any, str, Any]] = []
        self._projections = ProjectionSeam(family.denoiser, family.cross_attention())
        self._handles: list[Any] = []
        if overlays and any(guard.acts and guard.name in overlays for guard in guards):
            self._projections.install(overlays)
            self._handles.append(
                family.denoiser.register_forward_pre_hook(self._before, with_kwargs=True)
            )
        self._latents: Tensor | None = None
        self._steps, self._owed = 0, False
        if self._watching:
            self._end: Callable[[], Any] = getattr(pipeline, _END)
            wrappers[_END] = self._ended
            self._replace(pipeline.scheduler, "step", self._kept(pipeline.scheduler.step))
        for name, wrapper in wrappers.items():
            if hasattr(pipeline, name):
                self._replace(pipeline, name, wrapper)

    def _replace(self, of: Any, name: str, wrapper: Callable[..., Any]) -> None:
        self._replaced.append((of, name, vars(of).get(name)))
        vars(of)[name] = wrapper

    def remove(self) -> None:
        """Leave the pipeline as it was."""
        for of, name, before in self._replaced:
            if before is None:
                del vars(of)[name]
            else:
                vars(of)[name] = before
        self._replaced.clear()
        self._projections.remove()
        for handle in self._handles:
            handle.remove()

    @property
    def rows(self) -> int:
        """Images of the last call."""
        return len(self._readings)

    def readings(self, row: int) -> dict[str, ImageReading]:
        """What the guards of `row` of the last call have read."""
        return dict(self._readings[row])

    def flags(self) -> tuple[list[bool], list[bool]]:
        """For each row: has a guard fired, has one or the embedding met NaN."""
        fired = [any(told.fired for told in row.values()) for row in self._readings]
        valid = [all(told.valid for told in row.values()) for row in self._readings]
        return fired, [
            not (read and finite) for read, finite in zip(valid, self._finite, strict=True)
        ]

    def _before(self, _denoiser: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A forward of the denoiser begins: its rows are the prompts, once or for both halves."""
        latents = args[0] if args else kwargs.get("hidden_states", kwargs.get("sample"))
        if not isinstance(latents, Tensor) or not self.rows or len(latents) % self.rows:
            raise Unfollowed("a forward of other rows than the call's prompts cannot be guarded")
        self._projections.enter(torch.arange(len(latents), device=latents.device) % self.rows)

    def _kept(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """A scheduler's `step` that remembers what it has returned."""

        @wraps(step)  # pipelines look at its signature
        def stepped(*args: Any, **kwargs: Any) -> Any:
            made = step(*args, **kwargs)
            self._latents = made[0] if isinstance(made, tuple) else made.prev_sample
            self._steps += 1
            return made

        return stepped

    def _ended(self) -> Any:
        """The last thing of a call: what it has drawn is looked at before anyone has it."""
        try:
            if self._owed:
                self._look()
        finally:
            ended = self._end()
        return ended

    def _look(self) -> None:
        latents, self._latents, self._owed = self._latents, None, False
        if latents is None or len(latents) != self.rows:
            raise Unfollowed("what was drawn cannot be followed: use the pipeline's own scheduler")
        with torch.no_grad():
            whole = self._family.unpacked(latents)
            seen = self._finished.read(whole, [self._watching] * self.rows)
        self._readings = tuple(
            told | {name: replace(late, position=self._steps) for name, late in more.items()}
            for told, more in zip(self._readings, seen, strict=True)
        )
        self._after(self)

    def _checked_inputs(self, *args: Any, **kwargs: Any) -> Any:
        # the first thing that every pipeline's call does
        self._begun = True
        given = signature(self._check).bind(*args, **kwargs).arguments
        # of packed latents the family has to know the size
        self._family.height = given.get("height") or self._family.height
        self._family.width = given.get("width") or self._family.width
        return self._check(*args, **kwargs)

    def _refuse_images(self, *_args: Any, **_kwargs: Any) -> Any:
        raise Unfollowed("an image as a prompt (ip_adapter_image) cannot be guarded: leave it out")

    def _encode_prompt(self, *args: Any, **kwargs: Any) -> Any:
        given = signature(self._encode).bind(*args, **kwargs).arguments
        if self._guards and given.get("clip_skip") is not None:
            raise Unfollowed("clip_skip gives embeddings that guards do not know: leave it out")
        encoded = self._encode(*args, **kwargs)
        if self._looking:
            return encoded  # it is the family that encodes what was cut off
        begun, self._begun = self._begun, False
        if self._family.separate_negative and not begun:
            # the negative prompt of a call; embeddings asked for outside of one come back with it
            return encoded
        self.began = time.monotonic()
        self._latents, self._steps, self._owed = None, 0, True
        if not self._guards:
            self._readings = tuple({} for _ in encoded[0])
            self._finite = [True] * len(self._readings)
            self._after(self)
            return encoded
        parts = [encoded[part] for part in self._family.parts]
        self._looking = True
        try:
            with torch.inference_mode(False), torch.no_grad():
                made = self._guarded([part.clone() for part in parts], given)
        finally:
            self._looking = False
        self._after(self)
        replaced = dict(zip(self._family.parts, made, strict=True))
        return tuple(replaced.get(i, tensor) for i, tensor in enumerate(encoded))

    def _guarded(self, parts: Sequence[Tensor], given: Mapping[str, Any]) -> Sequence[Tensor]:
        """What goes on in place of `parts`; a row in which nothing was done keeps its bits."""
        family = self._family
        repeats = max(int(given.get(name) or 1) for name in _REPEATS)
        texts = self._texts(given, len(parts[0]) // repeats)
        each = None if texts is None else {n: _repeated(t, repeats) for n, t in texts.items()}
        text = family.take_apart(parts, each)
        self._require_layout(text, parts)
        cut = [] if texts is None else family.overflow_of(texts)
        overflow = [rest for rest in cut for _ in range(repeats)]
        applied: Applied = self._bank.apply(text, [self._guards] * text.rows, overflow)
        self._readings = applied.readings
        self._finite = applied.text.finite().tolist()
        self._overlay(applied)
        made = family.put_together(applied.text)
        return [new.to(old.dtype) for new, old in zip(made, parts, strict=True)]

    def _overlay(self, applied: Applied) -> None:
        """The rows on which guards have fired are drawn with their overlays."""
        fired = [
            [
                guard
                for guard in self._guards
                if guard.acts and guard.name in self._projections and told[guard.name].fired
            ]
            for told in applied.readings
        ]
        every = torch.arange(len(fired), device=self._family.device)
        self._projections.carry(fired, every)

    def _texts(self, given: Mapping[str, Any], rows: int) -> dict[str, list[str]] | None:
        """What each tokenizer reads, by the argument's name; None where embeddings were given."""
        if given.get("prompt_embeds") is not None:
            return None
        first = _listed(given["prompt"])
        read = {
            reader.argument: _listed(given.get(reader.argument) or first)
            for reader in self._family.readers
        }
        if any(len(texts) != rows for texts in read.values()):
            raise Unfollowed("prompts of different numbers for its encoders cannot be guarded")
        return read

    def _require_layout(self, text: Conditioning, parts: Sequence[Tensor]) -> None:
        # embeddings with something where a family has nothing would carry it past the guards
        made = self._family.put_together(text)
        if not all(map(_same, made, parts)):
            kind = type(self._pipeline).__name__
            raise Unfollowed(f"embeddings that are not as {kind} makes them cannot be guarded")


def _same(new: Tensor, old: Tensor) -> bool:
    """NaN, which the guards will meet, is the same as NaN."""
    if new.shape != old.shape:
        return False
    return bool(((new == old) | (new.isnan() & old.isnan())).all())


def _listed(texts: Any) -> list[str]:
    return [texts] if isinstance(texts, str) else list(texts)


def _repeated(texts: Sequence[str], times: int) -> list[str]:
    return [text for text in texts for _ in range(times)]
