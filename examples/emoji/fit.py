"""The baselines of the example's configuration: `python -m examples.emoji.fit`.

The same as `guard fit METHOD` for each concept file, but the model is loaded once and the prompts
of a concept are encoded once. Every eraser is fitted as published, without a gate, with the
project's linear one (`-gated`) and with the classifiers of the concept's CGCE guard
(`-cgce-gated`). The baselines are large and take minutes, so only the guards of CGCE are
committed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import typer

from examples.emoji.erasers import FITTED, write_configuration
from guard.artifact import Artifact
from guard.commands.eval.options import selected
from guard.data.concept import Concept, read_concept
from guard.evaluation.images.judge import Judge
from guard.fitting.checkpoints import Checkpoints
from guard.fitting.images.classifier_gate import gated_by
from guard.fitting.images.closed_form.fit import ClosedForm, OverlayRequest, fit_closed_form
from guard.fitting.images.closed_form.realera import RealEra
from guard.fitting.images.closed_form.rece import Rece
from guard.fitting.images.closed_form.rounds import JudgedRounds, label_of, validation_prompts
from guard.fitting.images.closed_form.trce import Trce
from guard.fitting.images.closed_form.uce import Uce
from guard.fitting.images.trained.denoisers.all_but_one import AllButOne
from guard.fitting.images.trained.denoisers.ant import Ant
from guard.fitting.images.trained.denoisers.co_erasing import CoErasing
from guard.fitting.images.trained.denoisers.doco import DoCo
from guard.fitting.images.trained.denoisers.fit import DenoiserEraser, fit_denoiser
from guard.fitting.images.trained.denoisers.picture_tokens import PictureSettings
from guard.fitting.images.trained.denoisers.spm import Spm
from guard.fitting.images.trained.denoisers.trajectories import TrajectorySettings
from guard.fitting.images.trained.denoisers.trce import TrceStage2
from guard.fitting.images.trained.noisy_images import ImageSettings
from guard.fitting.images.training_free import (
    EncodedConcept,
    encode_concept,
    fit_contrastive,
    fit_guide,
    fit_nearest,
    fit_safree,
    with_gate,
    with_transport,
)
from guard.fitting.overlays.training import Training
from guard.fitting.prompts.concept_prompts import LabelledPrompt, prompts_of, safe_prompts
from guard.fitting.prompts.rates import PromptRates
from guard.fitting.sparse.images import SparsePromptFit, fit_sparse_prompt
from guard.fitting.sparse.training import Training as SparseTraining
from guard.models.images import ImageModel
from guard.reporting.progress import Stages, stages
from steering.methods.contrastive import PRESETS

HERE = Path(__file__).parent
BASELINES = FITTED / "baselines"
JUDGE = HERE / "judge-first.onnx"
"""The judge that tuning may use; figures come from the second one."""
PROMPTS = 400
RANK = 128
"""64 directions keep 90 % of the edit of some concepts, and of others 89.8 %; RECE's derived states
span more than the concept's own."""
RATES = PromptRates(0.005, 0.03)
STEPS, GUIDANCE = 8, 3.0
TWIN = "a banana"
"""What trained erasers put in a concept's place: the first replacements of some concept files are
things that the model does not draw as themselves."""
WAYS = TrajectorySettings(count=4, steps=STEPS, guidance=GUIDANCE, refresh=20)
IMAGES = ImageSettings(8, STEPS, GUIDANCE)
TRAINING = Training(rate=1e-2, project=True)
SPARSE = SparseTraining(features=512, active=8, updates=600)


def main(
    model: Annotated[
        str, typer.Option(help="An added model, a directory or a hub name.")
    ] = "emoji",
    concepts: Annotated[
        str | None, typer.Option(help="Concepts, separated by commas; all if left out.")
    ] = None,
    methods: Annotated[
        str | None, typer.Option(help="Methods, separated by commas; all if left out.")
    ] = None,
    gates: Annotated[bool, typer.Option(help="Fit erasers with both gates too.")] = True,
    updates: Annotated[int, typer.Option(help="Updates of erasers that are trained.")] = 100,
    judged: Annotated[int, typer.Option(help="Images with which a round of RECE is judged.")] = 48,
    out: Annotated[Path, typer.Option(help="Folder of the artifacts.")] = BASELINES,
) -> None:
    """Fit the baselines of every concept."""
    files = {path.stem: path for path in sorted((HERE / "guards").glob("*.json"))}
    image_model = ImageModel.load(model, device="auto")
    with stages() as progress:
        for name, path in selected(concepts, files).items():
            fit = ConceptFit(
                image_model, read_concept(path), judged, updates, progress, out / f"{name}-training"
            )
            for method, make in selected(methods, FITS).items():
                started = time.monotonic()
                artifact = make(fit)
                seconds = time.monotonic() - started
                _save(artifact, out / f"{name}-{method}.safetensors", seconds)
                if gates and method in GATED:
                    gated = with_gate(artifact, fit.concept, fit.encoded, RATES)
                    if method == "spm":
                        gated = with_transport(gated, fit.encoded)
                    headed = gated_by(artifact, Artifact.load(FITTED / f"{name}-cgce.safetensors"))
                    _save(headed, out / f"{name}-{method}-cgce-gated.safetensors", seconds)
                    seconds += fit.encoding_s
                    _save(gated, out / f"{name}-{method}-gated.safetensors", seconds)
    write_configuration(out)


class ConceptFit:
    """What the fits of one concept share: its prompts, encoded once where they are needed."""

    def __init__(
        self,
        model: ImageModel,
        concept: Concept,
        judged: int,
        updates: int,
        progress: Stages,
        states: Path,
    ) -> None:
        self.model, self.concept, self.progress, self._judged = model, concept, progress, judged
        self._updates, self._states = updates, states
        self.prompts: list[LabelledPrompt] = prompts_of(concept, PROMPTS)
        self.encoding_s = 0.0
        self.phrase = concept.phrases.train[0]
        self.instead = next(iter(concept.instead), "")
        self.twin = self.instead or concept.replacements[0]

    @cached_property
    def encoded(self) -> EncodedConcept:
        started = time.monotonic()
        encoded = encode_concept(self.model, self.concept, self.prompts, self.progress)
        self.encoding_s = time.monotonic() - started
        return encoded

    def closed_form(self, eraser: ClosedForm) -> Artifact:
        request = OverlayRequest(RANK, prompts=safe_prompts(self.concept, PROMPTS))
        judged = None
        if isinstance(eraser, Rece):
            judge = Judge(JUDGE)
            label, prompts = label_of(self.concept, judge), self.prompts
            asking = validation_prompts(prompts, self._judged)
            judged = JudgedRounds(self.model, judge, label, asking, STEPS, GUIDANCE)
        return fit_closed_form(
            self.model, self.concept, None, RATES, eraser, request, self.progress, judged
        )

    def trained(
        self, eraser: DenoiserEraser, rank: int = 8, updates: int | None = None
    ) -> Artifact:
        target = self._states.with_name(f"{self._states.name}-{eraser.name}.safetensors")
        training = replace(TRAINING, rank=rank, steps=updates or self._updates)
        artifact = fit_denoiser(
            self.model,
            self.concept,
            None,
            RATES,
            eraser,
            training,
            self.progress,
            keeping=lambda of: Checkpoints(target, of),
        )
        Checkpoints(target).clear()
        return artifact

    def sparse_prompt(self) -> Artifact:
        autoencoder = self._states.with_name(f"{self._states.name}-autoencoder.safetensors")
        request = SparsePromptFit(autoencoder, training=SPARSE)
        return fit_sparse_prompt(
            self.model, self.concept, self.encoded, RATES, request, self.progress, gated=False
        )

    def guide(self, method: str, preset: str | None) -> Artifact:
        return fit_guide(
            self.model, self.concept, None, RATES, method=method, phrase=self.phrase, preset=preset
        )

    def contrastive(self, preset: str) -> Artifact:
        return fit_contrastive(
            self.model,
            self.concept,
            None,
            RATES,
            phrase=self.phrase,
            counterpart=self.twin,
            contrast=PRESETS[preset],
            preset=preset,
        )


FITS: Mapping[str, Callable[[ConceptFit], Artifact]] = {
    "safree": lambda fit: fit_safree(
        fit.model, fit.concept, fit.encoded, RATES, rank=8, sense_rank=1, alpha=0.0
    ),
    "nearest": lambda fit: fit_nearest(
        fit.model, fit.concept, fit.encoded, RATES, rank=8, anchors=512, seed=0
    ),
    "sparse-prompt": lambda fit: fit.sparse_prompt(),
    "safe-guidance": lambda fit: fit.guide("safe-guidance", "medium"),
    "negative-prompt": lambda fit: fit.guide("negative-prompt", None),
    "uce": lambda fit: fit.closed_form(Uce(fit.instead)),
    "rece": lambda fit: fit.closed_form(Rece(Uce(fit.instead))),
    "trce": lambda fit: fit.closed_form(Trce(fit.twin)),
    "realera": lambda fit: fit.closed_form(RealEra(Uce(fit.instead))),
    "ant": lambda fit: fit.contrastive("ant"),
    "trce-push": lambda fit: fit.contrastive("trce"),
    "all-but-one": lambda fit: fit.contrastive("all-but-one"),
    "spm": lambda fit: fit.trained(Spm(batch=2, trajectories=WAYS), rank=1),
    "co-erasing": lambda fit: fit.trained(
        CoErasing(batch=2, pictures=PictureSettings(batch=2, images=IMAGES), trajectories=WAYS)
    ),
    "doco": lambda fit: fit.trained(DoCo(TWIN, batch=2, images=IMAGES)),
    "ant-trained": lambda fit: fit.trained(Ant(batch=1, trajectories=WAYS)),
    "trce-stage2": lambda fit: fit.trained(TrceStage2(TWIN, batch=2, trajectories=WAYS)),
    "all-but-one-trained": lambda fit: fit.trained(AllButOne(TWIN, batch=2, trajectories=WAYS)),
}
GATED = frozenset(FITS) - {"safree", "nearest", "safe-guidance", "negative-prompt"}
"""Methods that are fitted with gates too, as `METHOD-gated` and `METHOD-cgce-gated`."""


def _save(artifact: Artifact, path: Path, seconds: float) -> None:
    artifact.save(path)
    report: dict[str, Any] = {"method": artifact.meta.method, "took_s": round(seconds, 1)}
    path.with_name(f"{path.stem}.report.json").write_text(json.dumps(report) + "\n", "utf-8")


if __name__ == "__main__":
    typer.run(main)
