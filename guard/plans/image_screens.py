"""Screens of images: the encoders and the heads of a configuration. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from classifiers.embeddings.heads import Floats
from classifiers.images.card import ImageEncoderCard
from guard.errors import ModelError
from guard.models.sources import added_model, models_dir
from guard.plans.heads import Head, Heads, Loaded

if TYPE_CHECKING:
    # Pillow, which only policies with screens of images need
    from classifiers.images.encoder import ImageEncoder, Pixels
    from classifiers.images.ocr import TextInImages


@dataclass(frozen=True, slots=True)
class ImageClassifier:
    """An encoder of images and the heads on it."""

    encoder: ImageEncoder
    heads: Heads

    def scores(self, images: Sequence[Pixels]) -> Floats:
        """Probabilities `[images, heads]`, float32."""
        return self.heads.scores(self.encoder.encode(images))


@dataclass(frozen=True, slots=True)
class ImageClassifiers:
    """What reads images: classifiers by the name of their encoder, and text where a policy asks for
    it."""

    by_encoder: Mapping[str, ImageClassifier]
    ocr: TextInImages | None = None


Fails = Callable[[str, str], None]


def load_classifiers(
    guards: Loaded, fails: Fails
) -> tuple[dict[str, ImageClassifier], list[tuple[str, Head]]]:
    """The classifiers by encoder, and each head with its encoder. `fails` is called for each guard
    that does not load, with the reason."""
    by_encoder: dict[str, list[int]] = {}
    for index, (_, artifact) in enumerate(guards):
        by_encoder.setdefault(artifact.meta.model.name, []).append(index)
    classifiers, found = {}, []
    for name, indices in by_encoder.items():
        of_encoder = [guards[index] for index in indices]
        try:
            encoder = load_encoder(name)
        except ModelError as error:
            for setting, _ in of_encoder:
                fails(setting.name, error.message)
            continue
        heads = Heads(of_encoder, encoder.fingerprint, name, fails)
        if heads.all:
            classifiers[name] = ImageClassifier(encoder, heads)
            found += [(name, head) for head in heads.all]
    return classifiers, found


def load_encoder(name: str) -> ImageEncoder:
    """The image encoder of an added model. Raises ModelError."""
    encoder_card(name)
    try:
        from classifiers.images.encoder import ImageEncoder

        return ImageEncoder.load(models_dir() / name)
    except ImportError as error:
        raise ModelError(
            f"screens of images need {error.name}: pip install 'inference-guard[screens]'"
        ) from error


def encoder_card(name: str) -> ImageEncoderCard:
    """The card of an added image encoder, whose files are as they were added. Raises
    ModelError."""
    model = added_model(name)
    if model is None:
        raise ModelError(
            f"the image encoder {name!r} is not there yet: run `guard models add {name}`"
        )
    try:
        return ImageEncoderCard.read(model.path)
    except ValueError as error:
        raise ModelError(str(error)) from error


def load_ocr() -> TextInImages:
    """What reads text in images. Raises ModelError where its library is not installed."""
    try:
        from classifiers.images.ocr import TextInImages

        return TextInImages()
    except ImportError as error:
        raise ModelError(
            f"reading text in images needs {error.name}: pip install 'inference-guard[ocr]'"
        ) from error
