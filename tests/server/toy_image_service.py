"""An image service on an engine that generates noise, which tests can pause and break."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from guard.artifact import Artifact
from guard.config.schema import Config, load_config
from guard.plans.images import ImagePlans
from server.services.images import BatchedImageService
from server.services.interface import ImageModelInfo
from steering.engines.diffusion.engine import ImageStart
from steering.engines.diffusion.sampling.trajectories import InitialState
from steering.images.conditioning import Conditioning
from steering.images.embedding import ImageReading
from steering.images.stacks import ImageStacks
from steering.methods import METHODS
from tests.guard.toy_images import PAINTED, TOY_METHODS, ToyFamily, save_latents, save_toy
from tests.server.running_service import RunningService, StepControl, recording
from tests.server.tiny_text_service import steer_meta, steer_tensors

HEIGHT, WIDTH = 6, 8
TOO_MANY = 499
"""A number of steps that the engine refuses, whatever the server allows."""


@dataclass
class _Row:
    start: ImageStart
    text: Conditioning
    readings: dict[str, ImageReading]
    done: int = 0
    spoilt: bool = False


class ToyEngine(StepControl):
    """A DiffusionEngine whose images are noise that depends on the row's seed and conditioning.

    As in the real engine, a row is spoilt where its conditioning has met NaN, and invalid where one
    of its guards has. `start` and `step` pause.
    """

    def __init__(
        self,
        family: ToyFamily,
        stacks: ImageStacks,
        *,
        capacity: int,
    ) -> None:
        super().__init__()
        self.family, self.capacity = family, capacity
        self._bank, self._finished = stacks.prompts, stacks.output
        self._rows: list[_Row] = []
        self.started: list[str] = []
        self.closed = False

    @property
    def rows(self) -> int:
        return len(self._rows)

    @property
    def spoilt(self) -> list[bool]:
        return [row.spoilt for row in self._rows]

    @property
    def invalid(self) -> list[bool]:
        valid = [all(reading.valid for reading in row.readings.values()) for row in self._rows]
        return [row.spoilt or not read for row, read in zip(self._rows, valid, strict=True)]

    def check(self, start: ImageStart) -> None:
        if start.steps == TOO_MANY:
            raise ValueError(f"the scheduler cannot do {TOO_MANY} steps")

    def start(self, starts: Sequence[ImageStart]) -> list[dict[str, ImageReading]]:
        self.pause()
        assert self.rows + len(starts) <= self.capacity
        prompts = [start.prompt for start in starts]
        applied = self._bank.apply(
            self.family.encode(prompts),
            [[g for g in start.guards if g.name not in self._finished] for start in starts],
            self.family.overflow(prompts),
        )
        for index, (start, readings) in enumerate(zip(starts, applied.readings, strict=True)):
            text = applied.text.select(slice(index, index + 1))
            spoilt = not bool(text.finite().all())
            self._rows.append(_Row(start, text, readings, spoilt=spoilt))
        self.started += prompts
        return list(applied.readings)

    def step(self) -> list[int]:
        self.pause()
        assert self._rows
        self.steps += 1
        for row in self._rows:
            assert row.done < row.start.steps, "a complete row was not removed from the batch"
            row.done += 1
        complete = [i for i, row in enumerate(self._rows) if row.done == row.start.steps]
        for row in complete:
            self._read_output(self._rows[row])
        return complete

    def _read_output(self, row: _Row) -> None:
        guards = [guard for guard in row.start.guards if guard.name in self._finished]
        latents = self.family.latents(row.text)
        if row.start.initial is not None:
            latents = latents + row.start.initial.latents
        (readings,) = self._finished.read(latents, [guards])
        placed = {name: replace(reading, position=row.done) for name, reading in readings.items()}
        row.readings = {**row.readings, **placed}

    def images(self, rows: Sequence[int]) -> NDArray[np.uint8]:
        return np.stack([self._image(self._rows[row]) for row in rows])

    def _image(self, row: _Row) -> NDArray[np.uint8]:
        assert row.done == row.start.steps and not row.spoilt
        start = row.start
        text = zlib.crc32(row.text.states["text"].numpy().tobytes())
        guidance = zlib.crc32(f"{start.guidance} {start.negative_prompt}".encode())
        source = zlib.crc32(_source_bytes(start.initial))
        rng = np.random.default_rng([start.seed, start.steps, text, guidance, source])
        return rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)

    def drop(self, rows: Sequence[int]) -> list[tuple[int, int]]:
        moves = []
        for row in sorted(set(rows), reverse=True):
            last = len(self._rows) - 1
            if row != last:
                self._rows[row] = self._rows[last]
                moves.append((last, row))
            del self._rows[last]
        return moves

    def readings(self, row: int) -> dict[str, ImageReading]:
        return self._rows[row].readings

    def reset(self) -> None:
        self.check_reset()
        self._rows = []

    def close(self) -> None:
        self.closed = True


def _source_bytes(initial: InitialState | None) -> bytes:
    if initial is None:
        return b""
    kind = f"{type(initial).__name__} {getattr(initial, 'strength', '')}"
    return initial.latents.numpy().tobytes() + kind.encode()


RunningImages = RunningService[BatchedImageService, ToyEngine]


ACTIONS = {
    "refine": 'action = "refine"',
    "block": 'action = "block"',
    "flag": 'action = "flag"',
    "observe": 'action = "observe"',
    "open": 'on_error = "open"',
    "replace": 'fallback = "replace"\nreplacement = "a banana"',
    "relapse": 'fallback = "replace"\nreplacement = "an S"',
    "repaint": f'fallback = "replace"\nreplacement = "a {PAINTED}"',
}
BOTH = (["knife", "output"], ["blind", "output"])


def write_config(folder: Path, **server: Any) -> Path:
    """Policies as `ACTION-GUARD`, for a guard on prompts (knife), the same with NaN in it (blind),
    one of another encoder (other), one on the guidance (guide), one for language (words), and one
    on finished images (output); `ACTION-knife-output` and `ACTION-blind-output` have two.
    """
    save_toy(folder / "knife.safetensors")
    save_toy(folder / "blind.safetensors", method="toy-blind")
    save_toy(folder / "other.safetensors", fitted_on="0" * 64)
    save_toy(folder / "guide.safetensors", method="toy-guide", seams=["guidance"])
    save_latents(folder / "output.safetensors")
    Artifact(steer_meta("f" * 64), steer_tensors()).save(folder / "words.safetensors")
    lines = ["[server]", 'audit_log = "audit.jsonl"']
    lines += [f"{name} = {json.dumps(value)}" for name, value in server.items()]
    lines += ["[[models]]", 'name = "toy"', 'engine = "diffusers"', 'source = "toy"']
    for name in ("knife", "blind", "other", "guide", "words", "output"):
        lines += ["[[guards]]", f'name = "{name}"', f'artifact = "{name}.safetensors"']
    for guards in (["knife"], ["blind"], ["other"], ["guide"], ["words"], ["output"], *BOTH):
        for action, setting in ACTIONS.items():
            policy = "-".join([action, *guards])
            lines += [f"[policies.{policy}]", f"guards = {json.dumps(guards)}", setting]
    path = folder / "config.toml"
    path.write_text("\n".join(lines) + "\n")
    return path


@contextmanager
def serve_images(
    folder: Path, config: Config | None = None, **server: Any
) -> Iterator[RunningImages]:
    """A running service; `config` None writes one, with `server` in its `[server]`."""
    config = config or load_config(write_config(folder, **server))
    with recording(config) as records, pytest.MonkeyPatch.context() as patch:
        for name, method in TOY_METHODS.items():
            patch.setitem(METHODS, name, method)
        family = ToyFamily()
        plans = ImagePlans(config, family, name="toy")
        engine = ToyEngine(family, plans.stacks, capacity=config.server.max_batch)
        info = ImageModelInfo(
            name="toy",
            engine="diffusers",
            created=1,
            policies=plans.usable,
            width=WIDTH,
            height=HEIGHT,
            steps=4,
            guidance=3.0,
            max_steps=500,
        )
        service = BatchedImageService(
            info,
            engine,  # type: ignore[arg-type]
            plans,
            queue_limit=config.server.queue_limit,
            record=records,
        )
        try:
            yield RunningService(folder, config, service, engine, records)
        finally:
            engine.go.set()
            service.close()
