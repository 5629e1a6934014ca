"""The image engine on the GPU in 16 bits: decisions, throughput, host syncs for one step."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.host_syncs import Syncs, count_syncs, own_places
from benchmarks.image_batches import generate, starts
from benchmarks.rounds import timed_rounds
from guard.artifact import Artifact
from steering.engines.diffusion.engine import DiffusionEngine
from steering.engines.diffusion.families import Family, family_of
from steering.engines.diffusion.loading import load_pipeline
from steering.hidden.rows import RowGuard
from steering.images.stacks import ImageStacks
from steering.methods import METHODS
from steering.methods.fitted import FittedGuard
from steering.methods.stacking import MethodGuard
from tests.gpu.parts.decisions import decisions
from tests.gpu.report import Figure
from tests.gpu.settings import Add, Settings, Skipped, require_packages, required_model

DTYPES = ("float32", "float16", "bfloat16")
THROUGHPUT = 0.95
NEVER = 1e9
SCENES = (
    *("a {}", "two of {}", "a drawing of a {}", "a {} on a green background", "the {} in a house"),
    *("a {} and a cat", "one {}", "no {}"),
)
OTHERS = ("house", "tree", "book", "dog", "boat", "apple", "clock", "cloud")


def measure(settings: Settings, add: Add) -> None:
    """In each of DTYPES, beside float32 on the CPU."""
    require_packages("diffusers")
    folder = required_model(settings.images, "--images")
    smoke = settings.smoke
    exact = _family(folder, "float32", "cpu")
    found = fitted_guards(Path(settings.image_guards), writing=not smoke)
    reading = [name for name, artifact in found.items() if seam_of(artifact) == "embedding"]
    scenes = SCENES[: 2 if smoke else None]
    prompts = [scene.format(word) for scene in scenes for word in _words(found)]
    expected = _scores(exact, [_guard(name, found[name]) for name in reading], prompts)
    for dtype in DTYPES[:1] if smoke and not settings.on_gpu else DTYPES:
        family = exact if settings.device == "cpu" else _family(folder, dtype, settings.device)
        guards = [_guard(name, artifact) for name, artifact in found.items()]
        by_seam = {guard.name: guard for guard in guards}
        scores = _scores(family, [by_seam[name] for name in reading], prompts)
        for figure in decisions(dtype, expected, scores):
            add(figure)
        _engine(dtype, family, guards, settings, add)


def fitted_guards(folder: Path, *, writing: bool) -> dict[str, Artifact]:
    """The guards that read prompts, and with `writing` the first one that writes to latents, by
    name. Raises Skipped where no guard reads prompts."""
    found = {path.stem: Artifact.load(path) for path in sorted(folder.glob("*.safetensors"))}
    reading = {name: each for name, each in found.items() if seam_of(each) == "embedding"}
    later = [name for name, each in found.items() if writing and seam_of(each) == "latent"]
    if not reading:
        raise Skipped(f"{folder} has no guard that reads prompts: give --image-guards FOLDER")
    return reading | {name: found[name] for name in later[:1]}


def seam_of(artifact: Artifact) -> str:
    """Where its method acts."""
    return METHODS[artifact.meta.method].seam


def _words(found: dict[str, Artifact]) -> list[str]:
    """The words of the guards' concepts, and others."""
    concepts = [each.meta.concept.split("/")[-1].replace("-", " ") for each in found.values()]
    return [*dict.fromkeys(concepts), *OTHERS]


def _family(folder: str, dtype: str, device: str) -> Family:
    return family_of(load_pipeline(folder, dtype=dtype, device=device))


def _guard(name: str, artifact: Artifact) -> MethodGuard:
    fitted = FittedGuard(name, artifact.tensors, artifact.meta.settings)
    return MethodGuard(METHODS[artifact.meta.method], fitted)


@torch.no_grad()
def _scores(family: Family, guards: Sequence[MethodGuard], prompts: Sequence[str]) -> Tensor:
    """What each guard says of each prompt, `[prompts, guards]`, float64."""
    bank = ImageStacks.of(guards, family.device).prompts
    silent = [RowGuard(guard.name, NEVER, 1.0) for guard in guards]
    rows = []
    for prompt in prompts:
        (readings,) = bank.apply(family.encode([prompt]), [silent]).readings
        rows.append([readings[guard.name].score for guard in guards])
    return torch.tensor(rows, dtype=torch.float64)


def _engine(
    dtype: str, family: Family, guards: Sequence[MethodGuard], settings: Settings, add: Add
) -> None:
    smoke = settings.smoke
    count, steps = (1, 4) if smoke else (8, 20)
    about = Namespace(steps=steps, guidance=3.0)
    engine = DiffusionEngine(family, ImageStacks.of(guards, family.device), capacity=count)
    # all of them sense, at every step too, and none acts
    silent = [RowGuard(guard.name, NEVER, 1.0) for guard in guards]
    sides = {
        "bare": starts("a house on a green background", count, about),
        "guarded": starts("a house on a green background", count, about, silent),
    }
    runs: dict[str, Callable[[], object]] = {
        side: (lambda batch=batch: generate(engine, batch)) for side, batch in sides.items()
    }
    result = timed_rounds(runs, 2 if smoke else 5, "bare")
    note = "quartiles {:.3f} to {:.3f}".format(*result["guarded"]["quartiles"])
    add(Figure(f"{dtype}: bare throughput", count / result["bare"]["seconds"], "images/s"))
    ratio = result["guarded"]["ratio"]
    target = settings.speed(THROUGHPUT)
    add(Figure(f"{dtype}: guarded, of bare", ratio, "ratio", target, note=note))
    found: dict[str, Syncs] = {}
    profiled = steps // 2
    places: Mapping[str, int] = {}
    for side, batch in sides.items():
        engine.reset()
        engine.start(batch)

        def run() -> None:
            for _ in range(profiled):
                engine.step()

        found[side] = count_syncs(run).per(profiled)
        if side == "guarded":
            places = own_places(engine.step)
    own = found["guarded"] - found["bare"]
    where = ", ".join(f"{place} {times}x" for place, times in [*places.items()][:5])
    add(Figure(f"{dtype}: waits for the GPU, bare", found["bare"].waits, "a step"))
    add(Figure(f"{dtype}: own waits for the GPU", own.waits, "a step", note=where))
    add(Figure(f"{dtype}: own scalars read", own.scalars, "a step"))
