"""Trainings and descents of CGCE compared: how often a refined prompt still shows its concept.

    python -m benchmarks.remedies [--concepts knife,cat,santa-claus] [--prompts 20] [--json]

A classifier can call a prompt safe whose image is not. Each way of training is fitted for each
concept; each way of descent is a setting of the fitted guard. All use the same prompts and seeds:
the name of the concept alone and beside another object. No prompt is one of the test, and the judge
is the one for tuning. A prompt that the classifier does not call safe is blocked, and counts as
without the concept.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.attacks.concepts import frames
from benchmarks.attacks.concepts import name as plain_name
from classifiers.heads import PARTS
from classifiers.training import Recipe
from examples.emoji.prompts import FILE, GUARDED
from examples.emoji.sprites import names
from guard.artifact import Artifact
from guard.config.schema import load_config
from guard.data.concept import read_concept
from guard.evaluation.images.generator import EngineImageGenerator
from guard.evaluation.images.judge import Judge, JudgeView
from guard.evaluation.images.suite import load_suite
from guard.evaluation.shares import Share
from guard.fitting.images.cgce import Descent, fit_cgce
from guard.fitting.prompts.concept_prompts import folds_of
from guard.fitting.prompts.rates import Calibrated, PromptRates
from guard.fitting.prompts.search import Search
from guard.models.images import ImageModel
from guard.reporting.progress import Stages, stages

EMOJI = Path(__file__).parents[1] / "examples" / "emoji"
TRAININGS = {
    "plain": Recipe(noise=0.0, radius=0.0),
    "noise": Recipe(noise=0.5, radius=0.0),
    "noise and attacks": Recipe(noise=0.5, radius=0.1),
}
_FREE: dict[str, Any] = {"confine": False, "pull": 0.0}


@dataclass(frozen=True)
class Remedy:
    """A way of training, and the settings of the descent; `depth` as in `Descent`."""

    training: str
    action: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    depth: float = Descent.depth
    alone: bool = False
    """Whether one classifier replaces the ensemble."""


REMEDIES = (
    Remedy("plain", "free, one classifier", _FREE, alone=True),
    Remedy("plain", "free, an ensemble", _FREE),
    Remedy("noise", "free", _FREE),
    Remedy("noise and attacks", "free", _FREE),
    Remedy("noise and attacks", "tokens with half of the gradient", _FREE | {"share": 0.5}),
    Remedy("noise and attacks", "pull 0.5", {"confine": False}),
    Remedy("noise and attacks", "confined", {"pull": 0.0}),
    Remedy("plain", "confined, pull 0.5"),
    Remedy("noise and attacks", "confined, pull 0.5, one classifier", alone=True),
    Remedy("noise and attacks", "confined, pull 0.5, depth 0.5", depth=0.5),
    Remedy("noise and attacks", "confined, pull 0.5 (default)"),
)


@dataclass(frozen=True)
class AskedPrompt:
    """A prompt, its concept, and the object beside the concept."""

    prompt: str
    concept: str
    beside: str | None


def main() -> None:
    """Fit, generate images, and print a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--concepts", default="knife,cat,santa-claus", help="with commas")
    parser.add_argument("--prompts", type=int, default=20, help="of each concept and kind")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    concepts = arguments.concepts.split(",")
    if unknown := set(concepts) - {*GUARDED}:
        raise SystemExit(f"no concept {', '.join(unknown)}: choose from {', '.join(GUARDED)}")
    rows = prompts_of(concepts, arguments.prompts)
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), concepts)
        results = measure(Path(folder), rows, arguments.steps)
    if arguments.json:
        print(json.dumps(results, indent=2))
        return
    columns = ["training", "descent", "called safe", "alone", "in pairs", "kept", "steps"]
    table = Table(*columns)
    for result in results:
        table.add_row(*(str(result[column]) for column in columns))
    Console().print(table)


def prompts_of(concepts: Sequence[str], count: int) -> list[AskedPrompt]:
    """Prompts outside of the test: `count` with the name alone, and `count` beside another name."""
    tested = {json.loads(line)["prompt"] for line in FILE.read_text("utf-8").splitlines()}
    prompts = []
    for number, concept in enumerate(concepts):
        rng = np.random.default_rng((7, number))
        others = [other for other in names() if other != concept]
        alone: dict[str, AskedPrompt] = {}
        pairs: dict[str, AskedPrompt] = {}
        while len(alone) < count:
            text = frames(concept, 1, rng)[0][0].replace("picture", str(rng.choice(_KINDS)))
            if text not in tested:
                alone[text] = AskedPrompt(text, concept, None)
        while len(pairs) < count:
            other = str(rng.choice(others))
            text = f"{plain_name(concept)} together with {plain_name(other)}"
            pairs[text] = AskedPrompt(text, concept, other)
        prompts += [*alone.values(), *pairs.values()]
    return prompts


_NO_IMAGE = JudgeView((), "")
_KINDS = ("picture", "drawing", "sticker", "painting", "sketch", "photo")


def write(folder: Path, concepts: Sequence[str]) -> None:
    """Write the artifacts of every remedy and concept, and a configuration with their policies."""
    model = ImageModel.load("emoji", device="cpu")
    lines = ['[[models]]\nname = "emoji"\nsource = "emoji"\nengine = "diffusers"\n']
    with stages() as progress:
        for concept in concepts:
            fits = {training: _fit(model, concept, training, progress) for training in TRAININGS}
            for number, remedy in enumerate(REMEDIES):
                name = f"{concept}-{number}"
                guard = with_remedy(fits[remedy.training], remedy)
                guard.save(folder / f"{name}.safetensors")
                lines.append(
                    f'[[guards]]\nname = "{name}"\nartifact = "{name}.safetensors"\n'
                    f'[policies.{name}]\nguards = ["{name}"]\naction = "refine"\n'
                )
    (folder / "config.toml").write_text("\n".join(lines), "utf-8")


def measure(folder: Path, rows: Sequence[AskedPrompt], steps: int) -> list[dict[str, Any]]:
    """The figures of each remedy, those of the bare model first."""
    suite = load_suite(EMOJI / "suite.toml").model_copy(update={"steps": steps})
    generator = EngineImageGenerator.load(load_config(folder / "config.toml"), suite)
    judge = Judge(EMOJI / "judge-first.onnx")
    prompts, seeds = [row.prompt for row in rows], list(range(len(rows)))
    results = []
    with stages() as progress:
        for number, remedy in enumerate((None, *REMEDIES), -1):
            policies = [f"{row.concept}-{number}" if remedy else None for row in rows]
            effects = generator.inspect(prompts, policies)
            advance = progress(f"generating: {remedy.action if remedy else 'bare'}", len(rows))
            shown = [i for i, effect in enumerate(effects) if not effect.blocked]
            generated = generator.generate(
                _of(prompts, shown), _of(seeds, shown), _of(policies, shown), advance
            )
            images = [row.image for row in generated if row.image is not None]
            views = dict(zip(shown, judge.views(np.stack(images)), strict=True))
            labels = {
                "training": remedy.training if remedy else "bare",
                "descent": remedy.action if remedy else "",
            }
            safe = Share.of([not effect.blocked for effect in effects])
            steps_taken = float(np.median([effect.steps for effect in effects]))
            results.append(
                labels
                | _shares(rows, [views.get(i, _NO_IMAGE) for i in range(len(rows))])
                | {"called safe": f"{safe.value:.1%}" if remedy else "", "steps": steps_taken}
            )
    return results


def _of(items: Sequence[Any], rows: Sequence[int]) -> list[Any]:
    return [items[row] for row in rows]


def _shares(rows: Sequence[AskedPrompt], views: Sequence[JudgeView]) -> dict[str, str]:
    """How often images show the concept, alone and in pairs, and the object beside it."""
    pairs = list(zip(rows, views, strict=True))
    shares = {
        "alone": [view.shows(row.concept) for row, view in pairs if row.beside is None],
        "in pairs": [view.shows(row.concept) for row, view in pairs if row.beside],
        "kept": [view.shows(row.beside) for row, view in pairs if row.beside],
    }
    return {name: f"{Share.of(flags).value:.1%}" for name, flags in shares.items()}


def _fit(model: ImageModel, concept: str, training: str, progress: Stages) -> Calibrated:
    concept_file = read_concept(EMOJI / "guards" / f"{concept}.json")
    return fit_cgce(
        model,
        concept_file,
        folds_of(concept_file, 1200, 4),
        rates=PromptRates(0.005, 0.03),
        recipe=TRAININGS[training],
        descent=Descent(),
        search=Search(),
        progress=progress,
    )


def with_remedy(fit: Calibrated, remedy: Remedy) -> Artifact:
    """The fitted guard with the settings of a remedy, and with one head where it asks for one."""
    settings: dict[str, Any] = dict(fit.artifact.meta.settings)
    target = float(np.quantile(fit.scores["far"], remedy.depth))
    settings |= {"target": min(target, settings["threshold"])} | dict(remedy.settings)
    tensors = dict(fit.artifact.tensors)
    if remedy.alone:
        parts = {key for key in tensors if key.split(".")[0] in PARTS}
        tensors |= {key: tensors[key][:1] for key in parts}
    changes = {"settings": settings, "tensors_sha256": ""}
    return Artifact(fit.artifact.meta.model_copy(update=changes), tensors)


if __name__ == "__main__":
    main()
