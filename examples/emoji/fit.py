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
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import typer

from examples.emoji.erasers import FITTED, write_configuration
from guard.artifact import Artifact
from guard.commands.eval.options import selected
from guard.data.concept import Concept, read_concept
from guard.evaluation.images.judge import Judge
from guard.fitting.images.classifier_gate import gated_by
from guard.fitting.images.closed_form.fit import ClosedForm, OverlayRequest, fit_closed_form
from guard.fitting.images.closed_form.realera import RealEra
from guard.fitting.images.closed_form.rece import Rece
from guard.fitting.images.closed_form.rounds import JudgedRounds, label_of, validation_prompts
from guard.fitting.images.closed_form.trce import Trce
from guard.fitting.images.closed_form.uce import Uce
from guard.fitting.images.training_free import (
    EncodedConcept,
    encode_concept,
    fit_contrastive,
    fit_guide,
    fit_nearest,
    fit_safree,
    with_gate,
)
from guard.fitting.prompts.concept_prompts import LabelledPrompt, prompts_of, safe_prompts
from guard.fitting.prompts.rates import PromptRates
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
    judged: Annotated[int, typer.Option(help="Images with which a round of RECE is judged.")] = 48,
    out: Annotated[Path, typer.Option(help="Folder of the artifacts.")] = BASELINES,
) -> None:
    """Fit the baselines of every concept."""
    files = {path.stem: path for path in sorted((HERE / "guards").glob("*.json"))}
    image_model = ImageModel.load(model, device="auto")
    with stages() as progress:
        for name, path in selected(concepts, files).items():
            fit = _Fit(image_model, read_concept(path), judged, progress)
            for method, make in selected(methods, FITS).items():
                started = time.monotonic()
                artifact = make(fit)
                seconds = time.monotonic() - started
                _save(artifact, out / f"{name}-{method}.safetensors", seconds)
                if gates and method in GATED:
                    gated = with_gate(artifact, fit.concept, fit.encoded, RATES)
                    headed = gated_by(artifact, Artifact.load(FITTED / f"{name}-cgce.safetensors"))
                    _save(headed, out / f"{name}-{method}-cgce-gated.safetensors", seconds)
                    seconds += fit.encoding_s
                    _save(gated, out / f"{name}-{method}-gated.safetensors", seconds)
    write_configuration(out)


class _Fit:
    """What the fits of one concept share: its prompts, encoded once where they are needed."""

    def __init__(self, model: ImageModel, concept: Concept, judged: int, progress: Stages) -> None:
        self.model, self.concept, self.progress, self._judged = model, concept, progress, judged
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


FITS: Mapping[str, Callable[[_Fit], Artifact]] = {
    "safree": lambda fit: fit_safree(
        fit.model, fit.concept, fit.encoded, RATES, rank=8, sense_rank=1, alpha=0.0
    ),
    "nearest": lambda fit: fit_nearest(
        fit.model, fit.concept, fit.encoded, RATES, rank=8, anchors=512, seed=0
    ),
    "safe-guidance": lambda fit: fit.guide("safe-guidance", "medium"),
    "negative-prompt": lambda fit: fit.guide("negative-prompt", None),
    "uce": lambda fit: fit.closed_form(Uce(fit.instead)),
    "rece": lambda fit: fit.closed_form(Rece(Uce(fit.instead))),
    "trce": lambda fit: fit.closed_form(Trce(fit.twin)),
    "realera": lambda fit: fit.closed_form(RealEra(Uce(fit.instead))),
    "ant": lambda fit: fit.contrastive("ant"),
    "trce-push": lambda fit: fit.contrastive("trce"),
    "all-but-one": lambda fit: fit.contrastive("all-but-one"),
}
GATED = frozenset(FITS) - {"safree", "nearest", "safe-guidance", "negative-prompt"}
"""Methods that are fitted with gates too, as `METHOD-gated` and `METHOD-cgce-gated`."""


def _save(artifact: Artifact, path: Path, seconds: float) -> None:
    artifact.save(path)
    report: dict[str, Any] = {"method": artifact.meta.method, "took_s": round(seconds, 1)}
    path.with_name(f"{path.stem}.report.json").write_text(json.dumps(report) + "\n", "utf-8")


if __name__ == "__main__":
    typer.run(main)
