"""What the settings of an eraser of the emoji model do, each by itself, on validation prompts.

    python -m benchmarks.eraser_settings realera --concepts knife,pizza --images 8 --out FOLDER

The judge is the one that may choose (`second_opinion` of the suite), so that no figure is one of
the eraser: it says which settings to measure. Artifacts and finished cells in FOLDER are kept. With
`--moved` no image is generated: how far an edit moves what the text projections make of phrases,
those of the concept that no fit has seen, and all of the other concepts.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from examples.emoji.fit import HERE, WAYS, ConceptFit
from guard.artifact import Artifact
from guard.config.schema import Config
from guard.data.concept import read_concept
from guard.errors import DataError
from guard.evaluation.images import figures
from guard.evaluation.images.cells import CellResults
from guard.evaluation.images.evaluation import ImageEvaluation
from guard.evaluation.images.figures import EvaluatedCells
from guard.evaluation.images.generator import EngineImageGenerator
from guard.evaluation.images.judge import Judge, Judges
from guard.evaluation.images.suite import BARE, ImageSuite, load_suite, read_prompts
from guard.evaluation.images.targets import percent
from guard.fitting.images.closed_form.realera import RealEra
from guard.fitting.images.closed_form.uce import Uce
from guard.fitting.images.trained.denoisers.spm import Spm
from guard.models.images import ImageModel
from guard.reporting.progress import Stages, stages
from steering.engines.diffusion.seams.projections import text_projections
from steering.images.conditioning import Conditioning
from steering.methods import method_named

Fit = Callable[[ConceptFit], Artifact]

KINDS = ("direct", "paraphrase", "pair")


class Remembering(ImageModel):
    """Encodes prompts once: settings differ in what is made of their states."""

    @cached_property
    def _encoded(self) -> dict[tuple[str, ...], Conditioning]:
        return {}

    def encode(self, prompts: Sequence[str], stages: Stages | None = None) -> Conditioning:
        known, key = self._encoded, tuple(prompts)
        if key not in known:
            known[key] = super().encode(prompts, stages)
        return known[key]


def realera(**constants: Any) -> Fit:
    """RealEra with these constants in place of its defaults."""
    return lambda fit: fit.closed_form(RealEra(Uce(fit.instead), **constants))


def spm(updates: int, **settings: Any) -> Fit:
    """SPM of one dimension with these settings in place of its defaults."""
    eraser = Spm(batch=2, trajectories=WAYS, **settings)
    return lambda fit: fit.trained(eraser, rank=1, updates=updates)


SETTINGS: Mapping[str, Mapping[str, Fit]] = {
    "realera": {
        "uce": lambda fit: fit.closed_form(Uce(fit.instead)),
        "uce-keep-0.3": lambda fit: fit.closed_form(Uce(fit.instead, keep=0.3)),
        "uce-keep-1": lambda fit: fit.closed_form(Uce(fit.instead, keep=1.0)),
        "defaults": realera(),
        "near-0.6": realera(near=0.6),
        "near-0.9": realera(near=0.9),
        "far-0.2": realera(far=0.2),
        "far-0.7": realera(far=0.7),
        "radius-0.5": realera(radius=0.5),
        "radius-2": realera(radius=2.0),
        "samples-1": realera(samples=1),
        "samples-16": realera(samples=16),
        "directions-16": realera(directions=16),
        "directions-all": realera(directions=0),
    },
    "spm": {
        "updates-100": spm(100),
        "keep-30": spm(100, keep=30.0),
        "keep-1": spm(100, keep=1.0),
        "random-anchors": spm(100, anchors="random"),
    },
}
"""By eraser, the settings that are compared."""


def main() -> None:
    """Fit, measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("eraser", choices=SETTINGS)
    parser.add_argument("--concepts", default="knife,pizza")
    parser.add_argument("--only", help="of the settings")
    parser.add_argument("--kinds", default=",".join(KINDS), help="of prompts")
    parser.add_argument("--images", type=int, default=8, help="of each concept and kind")
    parser.add_argument("--moved", action="store_true", help="of closed forms, without images")
    parser.add_argument("--model", default="emoji")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    settings = SETTINGS[arguments.eraser]
    if arguments.only:
        settings = {name: settings[name] for name in arguments.only.split(",")}
    concepts = arguments.concepts.split(",")
    arguments.out.mkdir(parents=True, exist_ok=True)
    fitted = fit(settings, concepts, arguments.model, arguments.out)
    if arguments.moved:
        model = Remembering.load(arguments.model, device="auto")
        for concept in concepts:
            edits = {name: fitted[f"{concept}-{name}"] for name in settings}
            Console(width=160).print(moved_table(model, concept, edits))
        return
    suite = validation(load_suite(HERE / "erasers.toml"), [*settings], arguments.images)
    judges = Judges(Judge(suite.judge))
    chosen = [
        row
        for row in read_prompts(suite, judges.judge)
        if row.concept in concepts and row.kind in arguments.kinds.split(",")
    ]
    results = CellResults(arguments.out / f"{arguments.eraser}.results.jsonl")
    with stages() as progress:
        generator = EngineImageGenerator.load(configuration(fitted, arguments.model), suite)
        cells = ImageEvaluation(suite, generator, judges, results).run(chosen, progress)
    Console(width=160).print(report(cells, [BARE, *settings]))


def fit(
    settings: Mapping[str, Fit], concepts: list[str], model: str, folder: Path
) -> dict[str, Path]:
    """The artifact of each concept and setting, by the name of its policy."""
    paths = {f"{c}-{s}": folder / f"{c}-{s}.safetensors" for c in concepts for s in settings}
    missing = [name for name, path in paths.items() if not path.exists()]
    if not missing:
        return paths
    image_model = Remembering.load(model, device="auto")
    with stages() as progress:
        for concept in concepts:
            file = read_concept(HERE / "guards" / f"{concept}.json")
            one = ConceptFit(image_model, file, 0, 0, progress, folder / f"{concept}-training")
            for name, make in settings.items():
                if f"{concept}-{name}" in missing:
                    make(one).save(paths[f"{concept}-{name}"])
    return paths


def validation(suite: ImageSuite, names: list[str], images: int) -> ImageSuite:
    """The suite on its validation prompts, with the judge that may choose. Raises DataError for one
    without them."""
    if suite.second_opinion is None or not suite.validation:
        raise DataError("the suite has no second_opinion, or no validation prompts")
    return suite.model_copy(
        update={
            "judge": suite.second_opinion,
            "second_opinion": None,
            "prompts": suite.validation,
            "methods": {name: f"{{concept}}-{name}" for name in names},
            "ours": names[0],
            "parts": (),
            "images": images,
            "verify": 0,
        }
    )


def configuration(fitted: Mapping[str, Path], model: str) -> Config:
    """A policy for each artifact."""
    actions = {
        name: method_named(Artifact.load(path).meta.method).action for name, path in fitted.items()
    }
    return Config.model_validate(
        {
            "models": [{"name": "emoji", "source": model, "engine": "diffusers"}],
            "guards": [{"name": n, "artifact": str(path)} for n, path in fitted.items()],
            "policies": {n: {"guards": [n], "action": action} for n, action in actions.items()},
        }
    )


def moved(model: ImageModel, edit: Artifact, phrases: Sequence[str]) -> float:
    """How far an edit moves what the text projections make of phrases' tokens, as a share of it:
    the mean over layers."""
    text = model.encode(phrases)
    ((stream, states),) = text.states.items()
    tokens = states[text.masks[stream]].float()
    (group,) = [name for name in edit.tensors if name.startswith("reads.")]
    read = tokens @ torch.from_numpy(edit.tensors[group]).T
    shares = [
        (read @ torch.from_numpy(edit.tensors[f"writes.{name}"])).norm()
        / (tokens @ layer.weight.detach().cpu().float().T).norm()
        for name, layer in text_projections(model.family.cross_attention()).items()
    ]
    return float(torch.stack(shares).mean())


def moved_table(model: ImageModel, concept: str, edits: Mapping[str, Path]) -> Table:
    """One row a setting."""
    files = {path.stem: read_concept(path) for path in sorted((HERE / "guards").glob("*.json"))}
    unseen = files[concept].phrases.validation
    others = [text for name in files if name != concept for text in files[name].phrases.train]
    table = Table("settings", f"{concept}, {len(unseen)} unseen phrases", f"{len(others)} others")
    for name, path in edits.items():
        edit = Artifact.load(path)
        table.add_row(name, *(f"{moved(model, edit, each):.3f}" for each in (unseen, others)))
    return table


def report(cells: EvaluatedCells, names: list[str]) -> Table:
    """One row a setting: images that show the concept, by kind, and the other object of pairs."""
    table = Table("settings", *KINDS, "other object kept", "of bare")
    for name in names:
        of_kind = {kind: figures.judgements(cells, name, kind) for kind in KINDS}
        table.add_row(
            name,
            *(str(figures.reproduced(judgements)) for judgements in of_kind.values()),
            str(figures.kept(of_kind["pair"])),
            "" if name == BARE else percent(figures.kept_ratio(cells, name)),
        )
    return table


if __name__ == "__main__":
    main()
