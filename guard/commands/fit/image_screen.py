"""`guard fit image-screen`: from two folders of images to a screen of images."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from guard.commands.fit.options import AsJson, Out
from guard.commands.fit.output import checked_concept, require_artifact_name
from guard.commands.fit.screen import (
    CalibrationOption,
    DescriptionOption,
    FprOption,
    HeadKind,
    HoldOut,
    SeedOption,
    finish,
)
from guard.errors import DataError, ModelError
from guard.models.kind_checks import source_of
from guard.reporting.progress import stages


def image_screen(
    forget: Annotated[
        Path, typer.Option(help="Folder of images with the concept; folders in it are sources.")
    ],
    retain: Annotated[
        Path, typer.Option(help="Folder of images without it; folders in it are sources.")
    ],
    concept: Annotated[str, typer.Option(help="The concept, as kind/name.")],
    out: Out,
    model: Annotated[
        str, typer.Option(help="The image encoder, an added model.")
    ] = "efficientnet-lite0",
    kind: HeadKind = "logistic",
    calibration: CalibrationOption = "temperature",
    fpr: FprOption = 0.01,
    hold_out: HoldOut = None,
    seed: SeedOption = 0,
    description: DescriptionOption = "",
    as_json: AsJson = False,
) -> None:
    """Fit a screen of images: a head on an image encoder, calibrated, with its threshold."""
    require_artifact_name(out)
    checked_concept(concept, description)
    try:
        from guard.data.image_folders import read_folders
    except ImportError as error:
        raise DataError(
            f"reading images needs {error.name}: pip install 'inference-guard[fit]'"
        ) from error
    from guard.fitting.image_screens.fit import (
        fit_image_screen,
        require_images,
    )
    from guard.fitting.image_screens.report import as_json as report_json
    from guard.fitting.image_screens.report import as_page
    from guard.fitting.screens.cross_fit import HeadRecipe
    from guard.plans.image_screens import load_encoder

    source_of(model, "pixels")
    images = read_folders(forget, retain)
    recipe = HeadRecipe(kind=kind, calibration=calibration, fpr=fpr, seed=seed)
    require_images(images, hold_out or [], recipe)
    started = time.monotonic()
    encoder = load_encoder(model)
    if encoder.card.name != model:
        raise ModelError(f"{model!r} holds the encoder {encoder.card.name!r}: name that one")
    with stages() as progress:
        fit = fit_image_screen(
            encoder, images, concept, hold_out or [], recipe, progress, description
        )
    report = report_json(fit, time.monotonic() - started)
    finish(fit, report, as_page(fit), out, as_json=as_json)
