"""The baselines of the example's configuration: `python -m examples.emoji.fit`.

The same as `guard fit METHOD` with its defaults for each concept file, but the model is loaded once
and the prompts of a concept are encoded once. The baselines are large and take minutes, so only the
guards of CGCE are committed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from guard.data.concept import Concept, read_concept
from guard.fitting.images.closed_form.fit import OverlayRequest, fit_closed_form
from guard.fitting.images.closed_form.uce import Uce
from guard.fitting.images.training_free import (
    encode_concept,
    fit_guide,
    fit_nearest,
    fit_safree,
)
from guard.fitting.prompts.concept_prompts import prompts_of
from guard.fitting.prompts.rates import PromptRates
from guard.models.images import ImageModel
from guard.reporting.progress import Stages, stages

HERE = Path(__file__).parent
BASELINES = HERE / "fitted" / "baselines"
PROMPTS = 400
RATES = PromptRates(0.005, 0.03)


def main(
    model: Annotated[
        str, typer.Option(help="An added model, a directory or a hub name.")
    ] = "emoji",
    out: Annotated[Path, typer.Option(help="Folder of the artifacts.")] = BASELINES,
) -> None:
    """Fit the baselines of every concept."""
    image_model = ImageModel.load(model, device="auto")
    with stages() as progress:
        for path in sorted((HERE / "guards").glob("*.json")):
            _fit(image_model, read_concept(path), path.stem, out, progress)


def _fit(model: ImageModel, concept: Concept, name: str, out: Path, progress: Stages) -> None:
    encoded = encode_concept(model, concept, prompts_of(concept, PROMPTS), progress)
    phrase = concept.phrases.train[0]
    edit = Uce(next(iter(concept.instead), ""))
    overlay = OverlayRequest()
    artifacts = {
        "safree": fit_safree(model, concept, encoded, RATES, rank=8, sense_rank=1, alpha=0.0),
        "nearest": fit_nearest(model, concept, encoded, RATES, rank=8, anchors=512, seed=0),
        "safe-guidance": fit_guide(
            model, concept, None, RATES, method="safe-guidance", phrase=phrase, preset="medium"
        ),
        "negative-prompt": fit_guide(
            model, concept, None, RATES, method="negative-prompt", phrase=phrase, preset=None
        ),
        "uce": fit_closed_form(model, concept, None, RATES, edit, overlay, progress),
    }
    for method, artifact in artifacts.items():
        artifact.save(out / f"{name}-{method}.safetensors")


if __name__ == "__main__":
    typer.run(main)
