"""`guard harden`: attack a fitted guard of prompts, and train it on what came through."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from guard.artifact import Artifact
from guard.commands.fit.images.output import finish
from guard.commands.fit.options import AsJson, Device
from guard.commands.fit.output import require_artifact_name
from guard.data.concept import Concept, read_concept
from guard.data.prompts import PromptPair, read_rows
from guard.errors import DataError
from guard.models.kind_checks import source_of
from guard.reporting.progress import stages

if TYPE_CHECKING:
    from guard.fitting.images.attacked_prompts import JudgedAttempts
    from guard.models.images import ImageModel

app = typer.Typer(add_completion=False)

_NO_GAIN = (
    "no round let less through than the guard did before: it is written as it was. More --prompts "
    "a round may help; a guard that reads images (latents, irece) behind it needs no words"
)
_TRIALS = {"rounds": "rounds of attack and training"}


@app.command(
    epilog="Example: guard harden examples/emoji/fitted/knife-cgce.safetensors "
    "--concept-file examples/emoji/guards/knife.json --out knife-hardened.safetensors"
)
def harden(
    artifact: Annotated[Path, typer.Argument(help="The fitted guard, of `guard fit cgce`.")],
    concept_file: Annotated[Path, typer.Option(help="The concept in words, as of the fit.")],
    out: Annotated[Path, typer.Option(help="Artifact to write; the report goes beside it.")],
    model: Annotated[
        str | None, typer.Option(help="The guard's model; the one named in it if left out.")
    ] = None,
    rounds: Annotated[
        int, typer.Option(min=0, max=20, help="Rounds of training at most; 0 only attacks.")
    ] = 3,
    until: Annotated[
        float,
        typer.Option(min=0, max=1, help="Stop when at most this share of searches comes through."),
    ] = 0.1,
    prompts: Annotated[
        int, typer.Option(min=0, max=1000, help="Searches for prompts in a round.")
    ] = 12,
    words: Annotated[
        int, typer.Option(min=0, max=1000, help="Searches for learned words in a round.")
    ] = 4,
    steps: Annotated[int, typer.Option(min=1, max=1000, help="Steps of a search at most.")] = 20,
    length: Annotated[
        int, typer.Option(min=1, max=64, help="Tokens of a prompt that is searched.")
    ] = 8,
    judge: Annotated[
        Path | None,
        typer.Option(
            help="An ONNX judge of images: an attack counts if its image shows the concept. "
            "Without one the denoiser's view of the prompt decides."
        ),
    ] = None,
    image_steps: Annotated[
        int | None, typer.Option(min=1, max=1000, help="Denoising steps of these images.")
    ] = None,
    guidance: Annotated[
        float | None, typer.Option(min=0, help="Their guidance scale; the model's default.")
    ] = None,
    pairs: Annotated[
        Path | None, typer.Option(help="Pairs of prompts, JSON Lines, as of the fit.")
    ] = None,
    count: Annotated[int, typer.Option(min=100, help="As of the fit.")] = 1200,
    folds: Annotated[int, typer.Option(min=2, max=16, help="As of the fit.")] = 4,
    seed: Annotated[int, typer.Option(help="As of the fit.")] = 0,
    attack_seed: Annotated[int, typer.Option(help="Of the searches.")] = 0,
    bf16: Annotated[
        bool,
        typer.Option(
            help="Compute the denoiser in bfloat16 while searching: far slower on a CPU without it."
        ),
    ] = False,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Harden a CGCE guard: search what evades it, train its classifiers on that, search again.

    Keeps the false-positive rates of the fit. The guard that let least through is written, which
    may be the one given. A run that was killed goes on when it is repeated.
    """
    require_artifact_name(out)
    if out.resolve() == artifact.resolve():
        raise DataError(f"{out}: is the artifact itself: give another --out")
    if not prompts + words:
        raise DataError("--prompts 0 --words 0: there is nothing to search: give one of them")
    guard = Artifact.load(artifact)
    concept = read_concept(concept_file)
    if concept.name != guard.meta.concept:
        raise DataError(
            f"{concept_file}: is about {concept.name!r}, the guard about {guard.meta.concept!r}: "
            "give the concept file of its fit"
        )
    pair_rows = read_rows(pairs, PromptPair) if pairs else []
    source = model or guard.meta.model.name
    source_of(source, "images")

    from guard.fitting.checkpoints import Checkpoints
    from guard.fitting.images.hardening import Hardening
    from guard.fitting.images.hardening import harden as run
    from guard.fitting.prompts.attack import Attack
    from guard.fitting.prompts.concept_prompts import folds_of, labelled
    from guard.fitting.prompts.rates import rates_of
    from guard.models.images import ImageModel

    rates = rates_of(guard)
    made = [*folds_of(concept, count, folds, seed), *labelled(pair_rows, folds)]
    image_model = ImageModel.load(source, device=device)
    judged = _judged(judge, concept, image_model, image_steps, guidance) if judge else None
    attack = Attack(prompts=prompts, words=words, steps=steps, length=length)
    hardening = Hardening(rounds=rounds, until=until, attack=attack, bf16=bf16)
    words_of = concept.model_dump(mode="json", exclude={"description"})
    about = [
        guard.digest,
        words_of,
        vars(attack),
        bf16,
        attack_seed,
        judged.about if judged else None,
    ]
    kept = Checkpoints(out, json.dumps([*about, str(image_model.family.device)]))
    started = time.monotonic()
    with stages() as progress:
        hardened = run(
            image_model,
            guard,
            concept,
            made,
            rates=rates,
            hardening=hardening,
            judged=judged,
            kept=kept,
            seed=attack_seed,
            progress=progress,
        )
    took = time.monotonic() - started
    finish(hardened, concept, out, took, as_json=as_json, trials=_TRIALS)
    kept.clear()
    calibration = hardened.artifact.meta.calibration
    if not as_json and rounds and calibration["came_through"] and not calibration["best_round"]:
        Console().print(_NO_GAIN, markup=False, highlight=False, soft_wrap=True)


def _judged(
    judge: Path,
    concept: Concept,
    image_model: ImageModel,
    steps: int | None,
    guidance: float | None,
) -> JudgedAttempts:
    from guard.evaluation.images.judge import Judge
    from guard.fitting.images.attacked_prompts import JudgedAttempts
    from guard.fitting.images.closed_form.rounds import label_of

    opened = Judge(judge)
    default_steps, default_guidance = image_model.family.defaults
    return JudgedAttempts(
        opened,
        label_of(concept, opened),
        default_steps if steps is None else steps,
        default_guidance if guidance is None else guidance,
    )
