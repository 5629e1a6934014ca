"""Guards on a diffusers pipeline that a caller runs: `pipeline("a prompt")`, unchanged.

A pipeline encodes every prompt through its `encode_prompt`, and embeddings that a caller passes go
through it too: a wrapper on the instance returns guarded embeddings. The denoising steps are
followed (`following.py`). The finished latents are the last result of the scheduler's `step` when
the pipeline frees its hooks, the last action of a call before it returns its images. A call that
cannot be followed (embeddings of another layout, image prompts) raises Unfollowed instead of
running unguarded.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import wraps
from inspect import signature
from operator import is_not
from typing import Any

import torch
from torch import Tensor

from steering.engines.diffusion.calls import WatchedCalls, ignore, translated
from steering.engines.diffusion.families import Family
from steering.engines.diffusion.following import StepFollower
from steering.engines.diffusion.prompts import EncoderOverlays
from steering.engines.diffusion.unknown_padding import with_likely_padding
from steering.engines.eager import pause_compiled
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

    `after(attachment)` is called after the guards have read and refined the prompts, and again at
    the end of a call whose latents guards read; it may raise to end the call without images.
    `failed(reason)` is called at a call that cannot be followed, before it ends in Unfollowed, and
    may raise the caller's error. Raises ValueError for guards that do not fit the pipeline.

    The padding of embeddings that come without their prompt is unknown: guards read them under
    every length that their text may have.
    """

    def __init__(
        self,
        family: Family,
        stacks: ImageStacks,
        guards: Sequence[RowGuard],
        after: Callable[[PipelineAttachment], None],
        failed: Callable[[str], None] = ignore,
    ) -> None:
        pipeline = family.pipeline
        self._family, self._pipeline = family, pipeline
        self._stacks, self._after, self._failed = stacks, after, failed
        self._guards = tuple(guard for guard in guards if guard.name not in stacks.late)
        self._late = tuple(guard for guard in guards if guard.name in stacks.late)
        self._output = [guard for guard in guards if guard.name in stacks.output]
        self.began = time.monotonic()
        """When the last call encoded its prompts, on the monotonic clock."""
        self.fault: str | None = None
        """A call that cannot be followed ends in an error, whatever the policy."""
        self._readings: tuple[dict[str, ImageReading], ...] = ()
        self._finite: list[bool] = []
        self._in_call = self._encoding = False
        self._overlaying: Sequence[Sequence[RowGuard]] = ()
        """Of each row of the last call the guards that overlay the text encoders."""
        self._pipeline_encode: Callable[..., Sequence[Any]] = pipeline.encode_prompt
        self._pipeline_check = pipeline.check_inputs
        self._replaced: list[tuple[Any, str, Any]] = []
        self._latents: Tensor | None = None
        self._output_unread = False
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
            "check_inputs": self._check_inputs,
        }
        if self._guards:
            wrappers[_IMAGES] = self._refuse_images
        if self._late or self._follower is not None:
            self._replace(pipeline.scheduler, "step", self._around_step(pipeline.scheduler.step))
        if self._late:
            self._pipeline_end: Callable[[], Any] = getattr(pipeline, _END)
            wrappers[_END] = self._end
        if (self._late or self._follower is not None) and hasattr(pipeline, _LATENTS):
            self._pipeline_latents: Callable[..., Any] = getattr(pipeline, _LATENTS)
            wrappers[_LATENTS] = self._prepare_latents
        for name, wrapper in wrappers.items():
            if hasattr(pipeline, name):
                self._replace(pipeline, name, wrapper)
        self._parts = self._running_parts()
        self._calls = WatchedCalls(pipeline, self._ended, failed)
        self._resume = pause_compiled()

    def _arguments(
        self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> dict[str, Any]:
        """The arguments of a method of the pipeline by name, whatever is wrapped around it."""
        known = signature(getattr(type(self._pipeline), method))
        return known.bind(self._pipeline, *args, **kwargs).arguments

    def _running_parts(self) -> list[Any]:
        """The networks that guards were attached to."""
        return [self._family.denoiser, *self._family.encoders.values()]

    def _ended(self) -> None:
        """After a call: raise Unfollowed where it has passed the guards by."""
        if self._in_call and (self._guards or self._follower is not None):
            raise Unfollowed("the pipeline has not encoded a prompt: its call cannot be guarded")
        if self._follower is not None:
            self._follower.require_steps()

    def _replace(self, owner: Any, name: str, wrapper: Callable[..., Any]) -> None:
        self._replaced.append((owner, name, vars(owner).get(name)))
        vars(owner)[name] = wrapper

    def remove(self) -> None:
        """Restore the pipeline."""
        self._resume()
        self._calls.remove()
        for owner, name, attribute in self._replaced:
            if attribute is None:
                del vars(owner)[name]
            else:
                vars(owner)[name] = attribute
        self._replaced.clear()
        if self._follower is not None:
            self._follower.remove()
        self._encoders.remove()

    @property
    def rows(self) -> int:
        """The number of images of the last call."""
        return len(self._readings)

    def readings(self, row: int) -> dict[str, ImageReading]:
        """The readings of the guards of `row` of the last call."""
        late = {} if self._follower is None else self._follower.readings(row)
        return {**self._readings[row], **late}

    def masks(self, row: int) -> Mapping[str, Tensor]:
        """The masks of the writes of latent guards on `row` of the last call, by guard name."""
        return {} if self._follower is None else self._follower.masks(row)

    def flags(self) -> tuple[list[bool], list[bool]]:
        """For each row: whether a guard has fired, and whether one or the embedding was NaN."""
        rows = [self.readings(row) for row in range(self.rows)]
        fired = [any(reading.fired for reading in row.values()) for row in rows]
        valid = [all(reading.valid for reading in row.values()) for row in rows]
        invalid = [not (v and finite) for v, finite in zip(valid, self._finite, strict=True)]
        return fired, invalid

    def _around_step(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """A scheduler's `step` that is followed, and whose latents are kept."""
        followed = step if self._follower is None else self._follower.around(step)

        @wraps(step)  # pipelines inspect its signature
        def stepped(*args: Any, **kwargs: Any) -> Any:
            result = followed(*args, **kwargs)
            self._latents = result[0] if isinstance(result, tuple) else result.prev_sample
            self._steps += 1
            return result

        return stepped

    def _prepare_latents(self, *args: Any, **kwargs: Any) -> Any:
        arguments = self._arguments(_LATENTS, args, kwargs)
        if frames := arguments.get("num_frames"):
            self._family.frames = frames
        if self._follower is not None:
            with self._own_encoding():
                self._follower.resize()
            self._follower.seeded(arguments.get("generator"))
        return self._pipeline_latents(*args, **kwargs)

    def _end(self) -> Any:
        """The last action of a call: guards read the finished latents before it returns."""
        try:
            if self._output_unread:
                self._read_output()
        finally:
            result = self._pipeline_end()
        return result

    def _read_output(self) -> None:
        latents, self._latents, self._output_unread = self._latents, None, False
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
                row | {name: replace(late, position=position) for name, late in added.items()}
                for row, added in zip(self._readings, output, strict=True)
            )
        self._after(self)

    def _check_inputs(self, *args: Any, **kwargs: Any) -> Any:
        # the call of every pipeline begins with it
        self._in_call = True
        parts = self._running_parts()
        if len(parts) != len(self._parts) or any(map(is_not, parts, self._parts)):
            raise Unfollowed(
                "the pipeline has another network than when guards were attached: attach them "
                "after it is set"
            )
        arguments = self._arguments("check_inputs", args, kwargs)
        # the family needs the size to unpack latents
        self._family.height = arguments.get("height") or self._family.height
        self._family.width = arguments.get("width") or self._family.width
        return self._pipeline_check(*args, **kwargs)

    def _refuse_images(self, *_args: Any, **_kwargs: Any) -> Any:
        raise Unfollowed("an image as a prompt (ip_adapter_image) cannot be guarded: leave it out")

    def _encode_prompt(self, *args: Any, **kwargs: Any) -> Any:
        # a caller may encode prompts itself, outside of the pipeline's call
        with translated(self._failed):
            return self._encode(args, kwargs)

    def _encode(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        arguments = self._arguments("encode_prompt", args, kwargs)
        if self._guards and arguments.get("clip_skip") is not None:
            raise Unfollowed("clip_skip gives embeddings that guards do not know: leave it out")
        encoded = self._pipeline_encode(*args, **kwargs)
        if self._encoding:
            return encoded  # the family encodes the part that was cut off
        in_call, self._in_call = self._in_call, False
        if self._family.separate_negative and not in_call:
            # the second encoding of a call, of its negative prompt
            if self._follower is not None:
                self._follower.encoded_negative()
            return self._beside(encoded, arguments, args, kwargs)
        self._overlaying = ()
        self.began = time.monotonic()
        self._latents, self._steps, self._output_unread = None, 0, True
        if not self._guards:
            self._readings = tuple({} for _ in encoded[0])
            self._finite = [True] * len(self._readings)
            self._begin_steps()
            self._after(self)
            return encoded
        with self._own_encoding(), torch.inference_mode(False), torch.no_grad():
            guarded = self._guarded(encoded, arguments, args, kwargs)
        self._begin_steps()
        self._after(self)
        replaced = dict(zip(self._family.parts, guarded, strict=True))
        beside = self._beside(encoded, arguments, args, kwargs)
        return tuple(replaced.get(i, tensor) for i, tensor in enumerate(beside))

    def _beside(
        self,
        encoded: Sequence[Any],
        arguments: Mapping[str, Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Sequence[Any]:
        """What was encoded, its negative prompts too, by the changed encoders on the rows whose
        guards overlay them."""
        due = self._overlaying
        if not any(due):
            return encoded
        with self._encoders.on(due[:: _repeats(arguments)]):
            overlaid = self._pipeline_encode(*args, **kwargs)
        rows = torch.tensor([bool(row) for row in due])
        return [
            torch.where(rows.to(old.device).view(-1, *[1] * (old.ndim - 1)), new, old)
            if isinstance(old, Tensor) and len(old) == len(rows)
            else old
            for old, new in zip(encoded, overlaid, strict=True)
        ]

    @contextmanager
    def _own_encoding(self) -> Iterator[None]:
        """Prompts that are encoded inside this context are not those of the call."""
        self._encoding = True
        try:
            yield
        finally:
            self._encoding = False

    def _begin_steps(self) -> None:
        if self._follower is not None:
            with self._own_encoding():
                self._follower.begin(self._readings)

    def _guarded(
        self,
        encoded: Sequence[Any],
        arguments: Mapping[str, Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Sequence[Tensor]:
        """The guarded embeddings; a row on which no guard acts keeps its bits."""
        family = self._family
        parts = [encoded[part].clone() for part in family.parts]
        repeats = _repeats(arguments)
        texts = self._texts(arguments, len(parts[0]) // repeats)
        by_row = None if texts is None else {n: _repeated(t, repeats) for n, t in texts.items()}
        text = family.take_apart(parts, by_row)
        self._require_layout(text, parts)
        overflow_of_prompts = [] if texts is None else family.overflow_of(texts)
        overflow = [windows for windows in overflow_of_prompts for _ in range(repeats)]

        def encode(due: Sequence[Sequence[RowGuard]]) -> Conditioning:
            if texts is None:
                raise Unfollowed(
                    "a guard overlays the text encoders, which embeddings without their prompt do "
                    "not go through: pass the prompt"
                )
            self._overlaying = due
            with self._encoders.on(due[::repeats]):
                overlaid = self._pipeline_encode(*args, **kwargs)
            return family.take_apart([overlaid[part].clone() for part in family.parts], by_row)

        read = text if texts is not None else self._likely(text)
        applied: Applied = self._stacks.prompts.apply(
            read, [self._guards] * text.rows, overflow, encode
        )
        self._readings = applied.readings
        self._finite = applied.text.finite().tolist()
        guarded = family.put_together(text.with_states(applied.text.states))
        return [new.to(old.dtype) for new, old in zip(guarded, parts, strict=True)]

    def _likely(self, text: Conditioning) -> Conditioning:
        """Embeddings with the padding that they may have."""
        shortest = {
            reader.stream: int(reader.mask([""], text.masks[reader.stream].shape[1]).sum())
            for reader in self._family.readers
            if text.masks[reader.stream].shape[1] > 1 and bool(text.masks[reader.stream].all())
        }
        shortest = {name: max(least, 1) for name, least in shortest.items()}
        return with_likely_padding(text, self._stacks.prompts, self._guards, shortest)

    def _texts(self, arguments: Mapping[str, Any], rows: int) -> dict[str, list[str]] | None:
        """The input of each tokenizer, by the argument's name; None where the caller passes
        embeddings."""
        if arguments.get("prompt_embeds") is not None:
            return None
        first = _listed(arguments["prompt"])
        by_argument = {
            reader.argument: _listed(arguments.get(reader.argument) or first)
            for reader in self._family.readers
        }
        if any(len(texts) != rows for texts in by_argument.values()):
            raise Unfollowed("prompts of different numbers for its encoders cannot be guarded")
        return by_argument

    def _require_layout(self, text: Conditioning, parts: Sequence[Tensor]) -> None:
        # guards do not see values where the family has only padding: they would pass unguarded
        rebuilt = self._family.put_together(text)
        if not all(map(_same, rebuilt, parts)):
            kind = type(self._pipeline).__name__
            raise Unfollowed(f"embeddings that are not as {kind} makes them cannot be guarded")


def _same(new: Tensor, old: Tensor) -> bool:
    """Whether two tensors are equal; NaN, which the guards report, equals NaN."""
    if new.shape != old.shape:
        return False
    return bool(((new == old) | (new.isnan() & old.isnan())).all())


def _repeats(arguments: Mapping[str, Any]) -> int:
    """How many images there are of each prompt."""
    return max(int(arguments.get(name) or 1) for name in _REPEATS)


def _listed(texts: Any) -> list[str]:
    return [texts] if isinstance(texts, str) else list(texts)


def _repeated(texts: Sequence[str], times: int) -> list[str]:
    return [text for text in texts for _ in range(times)]
