"""Guards on a diffusers pipeline that somebody else runs: `pipeline("a prompt")` as it is.

A pipeline encodes every prompt through its own `encode_prompt`, and embeddings that a caller passes
go through there too: wrapped on the instance, it gives guarded embeddings to all that follows. Its
denoising steps are followed (`following.py`). The finished latents are those that its scheduler's
`step` has returned last when the pipeline frees its hooks, the last thing that a call does before
it gives its images away. A call that cannot be followed (embeddings of another layout, image
prompts) raises Unfollowed instead of passing unguarded.
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
from steering.engines.diffusion.following import StepFollower
from steering.engines.diffusion.prompts import EncoderOverlays
from steering.engines.errors import Unfollowed
from steering.hidden.rows import RowGuard
from steering.images.conditioning import Conditioning
from steering.images.embedding import Applied, ImageReading
from steering.images.stacks import ImageStacks

_IMAGES = "prepare_ip_adapter_image_embeds"
_END = "maybe_free_model_hooks"
_LATENTS = "prepare_latents"
_REPEATS = ("num_images_per_prompt", "num_videos_per_prompt")


class PipelineAttachment:
    """Wraps a family's pipeline until `remove`; every row carries `guards`.

    `after(attachment)` is called when a prompt's guards have decided, and again at the end of a
    call whose images guards read; it may raise to give nothing. Raises ValueError for guards that
    do not fit the pipeline.

    Embeddings that come without their prompt are guarded as they are: their padding is not known,
    and counts as text.
    """

    def __init__(
        self,
        family: Family,
        stacks: ImageStacks,
        guards: Sequence[RowGuard],
        after: Callable[[PipelineAttachment], None],
    ) -> None:
        pipeline = family.pipeline
        self._family, self._pipeline = family, pipeline
        self._stacks, self._after = stacks, after
        self._guards = tuple(guard for guard in guards if guard.name not in stacks.late)
        self._late = tuple(guard for guard in guards if guard.name in stacks.late)
        self._output = [guard for guard in guards if guard.name in stacks.output]
        self.began = time.monotonic()
        """When the last prompts came in."""
        self._readings: tuple[dict[str, ImageReading], ...] = ()
        self._finite: list[bool] = []
        self._begun = self._encoding = False
        self._encode: Callable[..., Sequence[Any]] = pipeline.encode_prompt
        self._check = pipeline.check_inputs
        self._replaced: list[tuple[Any, str, Any]] = []
        self._latents: Tensor | None = None
        self._owed = False
        self._steps = 0
        self._encoders = EncoderOverlays(family.encoders, stacks)
        self._follower: StepFollower | None = None
        if StepFollower.follows(stacks, guards):
            try:
                self._follower = StepFollower(family, stacks, guards)
            except BaseException:
                self._encoders.remove()
                raise
        wrappers = {
            "encode_prompt": self._encode_prompt,
            "check_inputs": self._checked_inputs,
        }
        if self._guards:
            wrappers[_IMAGES] = self._refuse_images
        if self._late or self._follower is not None:
            self._replace(pipeline.scheduler, "step", self._kept(pipeline.scheduler.step))
        if self._late:
            self._end: Callable[[], Any] = getattr(pipeline, _END)
            wrappers[_END] = self._ended
        if self._follower is not None and hasattr(pipeline, _LATENTS):
            self._prepare: Callable[..., Any] = getattr(pipeline, _LATENTS)
            wrappers[_LATENTS] = self._prepare_latents
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
        if self._follower is not None:
            self._follower.remove()
        self._encoders.remove()

    @property
    def rows(self) -> int:
        """Images of the last call."""
        return len(self._readings)

    def readings(self, row: int) -> dict[str, ImageReading]:
        """The readings of the guards of `row` of the last call."""
        late = {} if self._follower is None else self._follower.readings(row)
        return {**self._readings[row], **late}

    def masks(self, row: int) -> Mapping[str, Tensor]:
        """Where guards of latents have written on `row` of the last call."""
        return {} if self._follower is None else self._follower.masks(row)

    def flags(self) -> tuple[list[bool], list[bool]]:
        """For each row: has a guard fired, has one or the embedding met NaN."""
        rows = [self.readings(row) for row in range(self.rows)]
        fired = [any(reading.fired for reading in row.values()) for row in rows]
        valid = [all(reading.valid for reading in row.values()) for row in rows]
        return fired, [
            not (read and finite) for read, finite in zip(valid, self._finite, strict=True)
        ]

    def _kept(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """A scheduler's `step` that is followed, and whose result is kept."""
        followed = step if self._follower is None else self._follower.around(step)

        @wraps(step)  # pipelines inspect its signature
        def stepped(*args: Any, **kwargs: Any) -> Any:
            made = followed(*args, **kwargs)
            self._latents = made[0] if isinstance(made, tuple) else made.prev_sample
            self._steps += 1
            return made

        return stepped

    def _prepare_latents(self, *args: Any, **kwargs: Any) -> Any:
        given = signature(self._prepare).bind(*args, **kwargs).arguments
        if self._follower is not None:
            self._follower.seeded(given.get("generator"))
        return self._prepare(*args, **kwargs)

    def _ended(self) -> Any:
        """The last thing of a call: guards read the finished latents before anyone has them."""
        try:
            if self._owed:
                self._read_output()
        finally:
            ended = self._end()
        return ended

    def _read_output(self) -> None:
        latents, self._latents, self._owed = self._latents, None, False
        if latents is None or len(latents) != self.rows:
            raise Unfollowed("the image cannot be followed: use the pipeline's own scheduler")
        if self._follower is not None:
            self._follower.end(latents)
        if self._output:
            with torch.no_grad():
                whole = self._family.unpacked(latents)
                output = self._stacks.output.read(whole, [self._output] * self.rows)
            position = self._steps
            self._readings = tuple(
                row | {name: replace(late, position=position) for name, late in more.items()}
                for row, more in zip(self._readings, output, strict=True)
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
        if self._encoding:
            return encoded  # the family encodes the part that was cut off
        begun, self._begun = self._begun, False
        if self._family.separate_negative and not begun:
            # the negative prompt of a call; embeddings asked for outside of one come back with it
            if self._follower is not None:
                self._follower.encoded_negative()
            return encoded
        self.began = time.monotonic()
        self._latents, self._steps, self._owed = None, 0, True
        if not self._guards:
            self._readings = tuple({} for _ in encoded[0])
            self._finite = [True] * len(self._readings)
            self._begin_steps()
            self._after(self)
            return encoded
        self._encoding = True
        try:
            with torch.inference_mode(False), torch.no_grad():
                made = self._guarded(encoded, given, args, kwargs)
        finally:
            self._encoding = False
        self._begin_steps()
        self._after(self)
        replaced = dict(zip(self._family.parts, made, strict=True))
        return tuple(replaced.get(i, tensor) for i, tensor in enumerate(encoded))

    def _begin_steps(self) -> None:
        if self._follower is not None:
            self._follower.begin(self._readings)

    def _guarded(
        self,
        encoded: Sequence[Any],
        given: Mapping[str, Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Sequence[Tensor]:
        """The embeddings that go on; a row in which nothing was done keeps its bits."""
        family = self._family
        parts = [encoded[part].clone() for part in family.parts]
        repeats = max(int(given.get(name) or 1) for name in _REPEATS)
        texts = self._texts(given, len(parts[0]) // repeats)
        each = None if texts is None else {n: _repeated(t, repeats) for n, t in texts.items()}
        text = family.take_apart(parts, each)
        self._require_layout(text, parts)
        cut = [] if texts is None else family.overflow_of(texts)
        overflow = [rest for rest in cut for _ in range(repeats)]

        def encode(due: Sequence[Sequence[RowGuard]]) -> Conditioning:
            if texts is None:
                raise Unfollowed(
                    "a guard overlays the text encoders, which embeddings without their prompt do "
                    "not go through: pass the prompt"
                )
            with self._encoders.on(due[::repeats]):
                again = self._encode(*args, **kwargs)
            return family.take_apart([again[part].clone() for part in family.parts], each)

        applied: Applied = self._stacks.prompts.apply(
            text, [self._guards] * text.rows, overflow, encode
        )
        self._readings = applied.readings
        self._finite = applied.text.finite().tolist()
        made = family.put_together(applied.text)
        return [new.to(old.dtype) for new, old in zip(made, parts, strict=True)]

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
