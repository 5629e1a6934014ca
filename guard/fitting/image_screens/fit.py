"""A screen of images: a head on an image encoder, its probabilities and its threshold.

The head learns from all images and their mirror images. Its probabilities and its threshold come
from five heads, each of which was trained without a fifth of the images and scores that fifth, as
those of a screen of texts. Held-out folders are for testing only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date

import numpy as np
from numpy.typing import NDArray

from classifiers.embeddings.heads import EmbeddingHead, EmbeddingHeads, Floats
from classifiers.embeddings.training import train as train_head
from classifiers.images.encoder import ImageEncoder, Pixels
from guard.artifact import Artifact, ArtifactMeta, FittedModel
from guard.data.image_files import decode_whole
from guard.data.image_folders import LabelledImage, read_image
from guard.errors import DataError
from guard.fitting.image_screens.alterations import altered
from guard.fitting.judgement import HeldOut
from guard.fitting.screens.cross_fit import HeadRecipe, cross_fit
from guard.fitting.screens.figures import HeldOutScores, ScreenFigures, evenly, figures_of
from guard.fitting.screens.folds import FOLDS, Indices, folds_of, require_enough
from guard.reporting.progress import Stages

METHOD = "image-screen"


@dataclass(frozen=True, slots=True)
class ImageScreenFit:
    """An artifact, the figures of its held-out images, None without such, the images by which it is
    judged, and the files of these by their names."""

    artifact: Artifact
    test: ScreenFigures | None
    held_out: HeldOut
    images: dict[str, LabelledImage] = field(repr=False)


def require_images(
    images: Sequence[LabelledImage], hold_out: Sequence[str], recipe: HeadRecipe
) -> None:
    """Raise DataError if a source is unknown, or the images to train and to calibrate on are too
    few, whatever the encoder makes of them."""
    folds = folds_of(images, hold_out, recipe.seed)
    require_enough(images, folds, recipe.fpr, "images")


def fit_image_screen(
    encoder: ImageEncoder,
    images: Sequence[LabelledImage],
    concept: str,
    hold_out: Sequence[str],
    recipe: HeadRecipe,
    progress: Stages,
    description: str = "",
) -> ImageScreenFit:
    """Fit a screen for `concept`; images of the sources in `hold_out` are for testing.

    Raises DataError if a source is unknown or there are too few images.
    """
    folds = folds_of(images, hold_out, recipe.seed)
    unsafe = np.array([image.unsafe for image in images])
    embeddings, mirrored = _embedded(encoder, images, progress)
    try:
        fitted = cross_fit(
            images,
            folds,
            lambda chosen: _trained(embeddings, mirrored, chosen, unsafe, recipe),
            lambda head: EmbeddingHeads([head]).logits(embeddings)[:, 0],
            recipe.calibration,
            recipe.fpr,
            progress("training heads", FOLDS + 1),
        )
    except ValueError as error:
        raise DataError(f"the images of {concept} are not sufficient: {error}") from error
    head, threshold, scores, usable = fitted.head, fitted.threshold, fitted.scores, fitted.usable
    unsafe_scores = scores[usable[unsafe[usable]]]
    held_out = np.flatnonzero(folds < 0)
    test, judged = None, usable
    if len(held_out):
        test_images = [images[i] for i in held_out.tolist()]
        test_scores = HeldOutScores(
            test_images, EmbeddingHeads([head]).scores(embeddings[held_out])[:, 0]
        )
        as_altered = _altered(encoder, head, test_images, progress)
        test = figures_of(test_scores, threshold, as_altered)
        scores[held_out] = test_scores.scores
        judged = np.concatenate([usable, held_out])
    card = encoder.card
    meta = ArtifactMeta(
        method=METHOD,
        concept=concept,
        description=description,
        created=date.today(),
        model=FittedModel(
            name=card.name,
            architecture=card.architecture,
            fingerprint=card.fingerprint,
            layers=1,
            width=card.width,
        ),
        seams=("pixels",),
        settings=head.settings() | {"threshold": threshold},
        calibration={
            "false_positive_rate": recipe.fpr,
            "folds": FOLDS,
            "images": {"unsafe": len(unsafe_scores), "benign": len(usable) - len(unsafe_scores)},
            "recall": float((unsafe_scores > threshold).mean()),
            "held_out": list(hold_out),
            "tested": None if test is None else test.figures(),
        },
    )
    return ImageScreenFit(
        Artifact(meta, head.tensors()),
        test,
        HeldOut.of(
            threshold,
            [str(images[i].path) for i in judged],
            ["unsafe" if images[i].unsafe else "benign" for i in judged],
            scores[judged].tolist(),
        ),
        {str(images[i].path): images[i] for i in judged.tolist()},
    )


def pixels_of(image: LabelledImage) -> Pixels:
    """The pixels of an image, `[height, width, 3]`. Raises DataError."""
    return decode_whole(read_image(image.path))


def _embedded(
    encoder: ImageEncoder, images: Sequence[LabelledImage], progress: Stages
) -> tuple[Floats, Floats]:
    """Embeddings of the images and of their mirror images, both `[images, width]`."""
    advance = progress("reading images", len(images))
    rows = np.empty((2, len(images), encoder.width), np.float32)
    for index, image in enumerate(images):
        pixels = pixels_of(image)
        rows[:, index] = encoder.encode([pixels, np.ascontiguousarray(pixels[:, ::-1])])
        advance(1)
    return rows[0], rows[1]


def _trained(
    embeddings: Floats,
    mirrored: Floats,
    chosen: Indices,
    unsafe: NDArray[np.bool_],
    recipe: HeadRecipe,
) -> EmbeddingHead:
    both = np.concatenate([embeddings[chosen], mirrored[chosen]])
    labels = np.concatenate([unsafe[chosen], unsafe[chosen]])
    return train_head(recipe.kind, both, labels, np.ones(len(labels)), recipe.seed)


def _altered(
    encoder: ImageEncoder,
    head: EmbeddingHead,
    images: Sequence[LabelledImage],
    progress: Stages,
) -> dict[str, tuple[Floats, Floats]]:
    """The scores of some unsafe and some benign images, by how they are altered."""
    samples = [
        [images[i] for i in evenly([image.unsafe == kind for image in images])]
        for kind in (True, False)
    ]
    advance = progress("altered images", sum(map(len, samples)))
    found: dict[str, tuple[list[float], list[float]]] = {}
    for number, sample in enumerate(samples):
        for image in sample:
            for name, pixels in altered(pixels_of(image)).items():
                (score,) = EmbeddingHeads([head]).scores(encoder.encode([pixels]))[:, 0]
                found.setdefault(name, ([], []))[number].append(float(score))
            advance(1)
    return {
        name: (np.array(both[0], np.float32), np.array(both[1], np.float32))
        for name, both in found.items()
    }
