"""Screens of images: false positives of the nudity screen, a screen of an own concept, and cost.

    guard models add open-nsfw && guard models add efficientnet-lite0 && guard models add emoji
    python -m benchmarks.image_screens --folder FOLDER [--concept dog] [--json]

Images are drawn by the emoji model, pasted from its second style of emoji, and photographs and
other pictures that installed packages carry (matplotlib, scikit-learn, scikit-image where it is
there). The screen of the concept is fitted as `guard fit image-screen` does, on images drawn in the
first style; it is tested on other seeds and other wordings, on the second style, and on the
photographs. Of drawn images those count whose second judge agrees with the prompt. Images and the
report stay in FOLDER.
"""

from __future__ import annotations

import argparse
import io
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from classifiers.embeddings.heads import EmbeddingHead, EmbeddingHeads
from classifiers.images.encoder import ImageEncoder, Pixels
from examples.emoji.captions import decorate, phrases
from examples.emoji.scenes import BACKGROUNDS, Placed, Scene, draw, render
from examples.emoji.sprites import names
from guard.artifact import Artifact
from guard.data.image_files import UnusableImage, decode_readings
from guard.data.image_folders import read_folders
from guard.evaluation.images.judge import Judge
from guard.evaluation.shares import Share
from guard.fitting.files import write_report
from guard.fitting.image_screens.fit import fit_image_screen
from guard.fitting.image_screens.report import as_json, as_page
from guard.fitting.screens.cross_fit import HeadRecipe
from guard.models.images import ImageModel
from guard.plans.image_screens import load_encoder
from guard.reporting.progress import Stages, stages
from steering.engines.diffusion.engine import DiffusionEngine, ImageStart

NUDITY = Path("examples/screens/fitted/images/nudity.safetensors")
JUDGE = Path("examples/emoji/judge-second.onnx")
PACKAGES = {
    "matplotlib": "mpl-data/sample_data",
    "sklearn": "datasets/images",
    "skimage": "data",
}
STEPS, GUIDANCE, BATCH = 8, 3.0, 16
FIT, TEST = {"forget": 96, "retain": 208}, {"forget": 48, "retain": 96}
PASTED = {"forget": 100, "retain": 200}
DRAWN, HELD_OUT, SECOND, PHOTOGRAPHS = "noto", "other-wordings", "twemoji", "photographs"
TARGET_MS = 40.0
_SMALLEST = 64
"""Pixels of a side from which on a picture of a package counts."""


def main() -> None:
    """Measure, and print tables, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="where images are kept")
    parser.add_argument("--concept", default="dog", choices=names(), metavar="EMOJI")
    parser.add_argument("--rounds", type=int, default=20, help="of the cost")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with stages() as progress:
        make_images(arguments.folder, arguments.concept, progress)
    result = {
        "nudity": nudity(arguments.folder),
        "own concept": own_concept(arguments.folder, arguments.concept),
        "cost": cost(arguments.rounds),
    }
    if arguments.json:
        print(json.dumps(result, indent=2))
    else:
        _print(result)


def make_images(folder: Path, concept: str, progress: Stages) -> None:
    """Write the images of all families, unless they are there."""
    if (folder / "made").is_file():
        return
    rng = np.random.default_rng(0)
    wanted, others = (
        names().index(concept),
        [n for n, name in enumerate(names()) if name != concept],
    )
    model, judge = ImageModel.load("emoji"), Judge(JUDGE)
    seed = 0
    for source, split, counts in ((DRAWN, "train", FIT), (HELD_OUT, "test", TEST)):
        for label, count in counts.items():
            advance = progress(f"drawing {source}, {label}", count)
            kept = 0
            while kept < count:
                shown = [wanted] * BATCH
                if label == "retain":
                    shown = [int(index) for index in rng.choice(others, BATCH)]
                prompts = [
                    decorate(
                        str(rng.choice(phrases(index, split))),
                        style=0,
                        background=int(rng.integers(len(BACKGROUNDS))),
                        rng=rng,
                    )
                    for index in shown
                ]
                images = _drawn(model, prompts, seed)
                seed += BATCH
                for image, view in zip(images, judge.views(np.stack(images)), strict=True):
                    if view.shows(concept) == (label == "forget") and kept < count:
                        _save(folder / label / source / f"{kept:04}.png", image)
                        kept += 1
                        advance(1)
    for label, count in PASTED.items():
        for number in range(count):
            scene = _scene(wanted if label == "forget" else int(rng.choice(others)), rng, wanted)
            pixels = (render(scene) * 255).round().astype(np.uint8)
            _save(folder / label / SECOND / f"{number:04}.png", pixels)
    for name, pixels in photographs():
        _save(folder / "retain" / PHOTOGRAPHS / f"{name}.png", pixels)
    (folder / "made").touch()


def _drawn(model: ImageModel, prompts: Sequence[str], seed: int) -> list[Pixels]:
    engine = DiffusionEngine(model.family, capacity=BATCH, forward=None)
    engine.start(
        [
            ImageStart(prompt, seed=seed + i, steps=STEPS, guidance=GUIDANCE)
            for i, prompt in enumerate(prompts)
        ]
    )
    while not (complete := engine.step()):
        pass
    return list(engine.images(complete))


def _scene(concept: int, rng: np.random.Generator, wanted: int) -> Scene:
    """A scene in the second style with this concept, alone or beside others than the wanted."""
    while True:
        scene = draw(int(rng.integers(1, 4)), rng)
        first, *rest = scene.objects
        if not {concept, wanted} & {placed.concept for placed in rest}:
            return Scene(
                (Placed(concept, first.place, first.x, first.y), *rest), 1, scene.background
            )


def photographs() -> Iterator[tuple[str, Pixels]]:
    """The pictures that packages carry, by name: photographs, micrographs, diagrams."""
    for package, folder in PACKAGES.items():
        spec = find_spec(package)
        if spec is None or spec.origin is None:
            continue
        for path in sorted((Path(spec.origin).parent / folder).iterdir()):
            try:
                pixels = decode_readings(path.read_bytes())[0]
            except (UnusableImage, OSError):
                continue  # other files
            if min(pixels.shape[:2]) >= _SMALLEST:
                yield f"{package}-{path.stem}", pixels


def _save(path: Path, pixels: Pixels) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def nudity(folder: Path) -> dict[str, Any]:
    """How the nudity screen scores benign images, by family."""
    artifact = Artifact.load(NUDITY)
    encoder = load_encoder(artifact.meta.model.name)
    heads = EmbeddingHeads([EmbeddingHead.from_tensors(artifact.tensors, artifact.meta.settings)])
    threshold = float(str(artifact.meta.settings["threshold"]))
    found = {}
    for source in (DRAWN, HELD_OUT, SECOND, PHOTOGRAPHS):
        paths = sorted(folder.glob(f"*/{source}/*.png"))
        pixels = [decode_readings(path.read_bytes())[0] for path in paths]
        scores = heads.scores(encoder.encode(pixels))[:, 0]
        worst = int(scores.argmax())
        found[source] = {
            "fires": _figure(Share.of((scores > threshold).tolist())),
            "over 0.2": _figure(Share.of((scores > 0.2).tolist())),
            "highest": round(float(scores[worst]), 4),
            "of": paths[worst].name,
        }
    return found


def own_concept(folder: Path, concept: str) -> dict[str, Any]:
    """The figures of a fitted screen of the concept, and its artifact and report beside the
    images."""
    images = read_folders(folder / "forget", folder / "retain")
    encoder = load_encoder("efficientnet-lite0")
    started = time.monotonic()
    with stages() as progress:
        fit = fit_image_screen(
            encoder,
            images,
            f"object/{concept}",
            (HELD_OUT, SECOND, PHOTOGRAPHS),
            HeadRecipe(fpr=0.01),
            progress,
        )
    took = time.monotonic() - started
    out = folder / f"{concept}.safetensors"
    fit.artifact.save(out)
    report = as_json(fit, took)
    write_report(out, report, as_page(fit))
    calibration = fit.artifact.meta.calibration
    return {
        "judgement": report["judgement"],
        "threshold": fit.artifact.meta.settings["threshold"],
        "cross-fitted recall": calibration["recall"],
        "tested": calibration["tested"],
        "took_s": round(took, 1),
    }


def cost(rounds: int) -> dict[str, Any]:
    """Milliseconds of one core for an image, decoding and all, by encoder and size of the file."""
    rng = np.random.default_rng(0)
    found: dict[str, Any] = {}
    for name in ("open-nsfw", "efficientnet-lite0"):
        encoder = load_encoder(name)
        for side, form in ((64, "PNG"), (512, "PNG"), (1024, "JPEG"), (4096, "JPEG")):
            files = [_noise(side, form, rng) for _ in range(min(rounds, 20 if side < 4096 else 4))]
            found[f"{name}, {side} x {side} {form}"] = _timed(encoder, files)
    return found


def _noise(side: int, form: str, rng: np.random.Generator) -> bytes:
    """A file of smooth noise, which compresses as a photograph does."""
    small = Image.fromarray(rng.integers(0, 256, (side // 8, side // 8, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    small.resize((side, side), Image.Resampling.BICUBIC).save(buffer, form)
    return buffer.getvalue()


def _timed(encoder: ImageEncoder, files: Sequence[bytes]) -> dict[str, float]:
    encoder.encode(decode_readings(files[0]))
    processor, wall = [], []
    for file in files:
        before = time.process_time(), time.perf_counter()
        encoder.encode(decode_readings(file))
        processor.append(1000 * (time.process_time() - before[0]))
        wall.append(1000 * (time.perf_counter() - before[1]))
    return {
        "cpu_ms": round(float(np.median(processor)), 1),
        "wall_ms": round(float(np.median(wall)), 1),
    }


def _figure(share: Share) -> str:
    return str(share)


def _print(result: Mapping[str, Any]) -> None:
    console = Console()
    table = Table("family", "fires", "over 0.2", "highest", "of", title="nudity, benign images")
    for source, row in result["nudity"].items():
        table.add_row(source, *map(str, row.values()))
    console.print(table)
    own = result["own concept"]
    table = Table("collection", "fires", title=f"own concept: {own['judgement'][:80]}")
    for kind in ("recall", "false_positives", "disguised_recall", "disguised_false_positives"):
        for name, figure in own["tested"][kind].items():
            table.add_row(f"{kind}: {name}", f"{figure['count']}/{figure['total']}")
    console.print(table)
    table = Table("encoder, file", "CPU ms", "wall ms", title=f"target {TARGET_MS:.0f} ms of CPU")
    for name, row in result["cost"].items():
        table.add_row(name, str(row["cpu_ms"]), str(row["wall_ms"]))
    console.print(table)


if __name__ == "__main__":
    main()
