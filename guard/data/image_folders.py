"""Folders of images that people sort: one with a concept, one without."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from guard.data.image_files import UnusableImage, decode_whole
from guard.errors import DataError

MOST_IMAGES = 100_000
"""In both folders together."""
_MOST_BYTES = 64 * 2**20
_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp"})


@dataclass(frozen=True, slots=True)
class LabelledImage:
    """An image file. `source` is the folder in the given one that it is in, or that one itself;
    images of one `family` are the same file."""

    path: Path
    unsafe: bool
    source: str
    family: str | None


def read_folders(forget: Path, retain: Path) -> list[LabelledImage]:
    """The images in both folders and in those below them, by name; all are decoded once.

    Raises DataError for a folder without images, a file that is no image or too large, an image
    that is in both, and for too many.
    """
    images = [*_images(forget, unsafe=True), *_images(retain, unsafe=False)]
    if len(images) > MOST_IMAGES:
        raise DataError(f"{forget} and {retain} hold more than {MOST_IMAGES} images: give fewer")
    unsafe = {image.family: image for image in images if image.unsafe}
    for image in images:
        if not image.unsafe and image.family in unsafe:
            raise DataError(
                f"{image.path}: is the same image as {unsafe[image.family].path}: remove one"
            )
    return images


def _images(folder: Path, *, unsafe: bool) -> Iterator[LabelledImage]:
    if not folder.is_dir():
        raise DataError(f"{folder}: is no folder: give one with images")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES)
    if not paths:
        raise DataError(f"{folder}: holds no PNG, JPEG or WebP file")
    for path in paths[: MOST_IMAGES + 1]:
        parts = path.relative_to(folder).parts
        digest = hashlib.sha256(read_image(path)).hexdigest()
        source = parts[0] if len(parts) > 1 else folder.absolute().name
        yield LabelledImage(path, unsafe, source, digest)


def read_image(path: Path) -> bytes:
    """The bytes of a file that can be decoded. Raises DataError."""
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
        if len(content) > _MOST_BYTES:
            raise UnusableImage(f"it has more than {_MOST_BYTES} bytes")
        decode_whole(content)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except UnusableImage as error:
        raise DataError(f"{path}: is of no use: {error}: mend or remove it") from error
    return content
