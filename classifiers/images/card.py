"""The description of a converted image encoder: `config.json` beside the graph."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from classifiers.embeddings.encoders import fingerprint_of, sha256

CARD, GRAPH = "config.json", "image_encoder.onnx"

_ADD_AGAIN = "make the folder again with `guard models add`"
_LARGEST = 1024


@dataclass(frozen=True, slots=True)
class Preparation:
    """What is done to an image before the graph reads it.

    Its sides are resized to `resize` pixels each, whatever its proportions, and the central `crop`
    by `crop` pixels are read. `jpeg`: it is compressed and read again between the two. A channel
    `c` becomes `(c - mean) / scale`, `mean` being in the order of `channels`.
    """

    resize: int
    crop: int
    filtering: Literal["bilinear", "bicubic"]
    channels: Literal["RGB", "BGR"]
    layout: Literal["NHWC", "NCHW"]
    mean: tuple[float, float, float]
    scale: float
    jpeg: bool = False

    @classmethod
    def of(cls, fields: dict[str, Any]) -> Preparation:
        """From the fields of a card. Raises TypeError and ValueError for others."""
        made = cls(**fields | {"mean": tuple(map(float, fields["mean"]))})
        if not 1 <= made.crop <= made.resize <= _LARGEST or not made.scale > 0:
            raise ValueError(f"it reads {made.crop} of {made.resize} pixels at scale {made.scale}")
        return made


@dataclass(frozen=True, slots=True)
class ImageEncoderCard:
    """Name, origin and shape of a converted encoder.

    `source` is the SHA-256 (hex) of the original weights, `graph` that of the served file, `width`
    the length of an embedding; `recipe` is the version of the conversion.
    """

    name: str
    architecture: str
    source: str
    graph: str
    width: int
    preparation: Preparation
    recipe: int = 1

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over everything that decides an embedding, see `fingerprint_of`."""
        return fingerprint_of(asdict(self))

    def write(self, folder: Path) -> None:
        (folder / CARD).write_text(json.dumps(asdict(self), indent=1) + "\n", "utf-8")

    @classmethod
    def read(cls, folder: Path) -> ImageEncoderCard:
        """The card of a folder, checked against its graph. Raises ValueError where they differ."""
        try:
            fields = json.loads((folder / CARD).read_text("utf-8"))
            card = cls(**fields | {"preparation": Preparation.of(fields["preparation"])})
            actual = sha256(folder / GRAPH)
        except OSError as error:
            raise ValueError(f"{folder} is no image encoder: {error}; {_ADD_AGAIN}") from error
        except (TypeError, KeyError, ValueError) as error:
            raise ValueError(
                f"{folder} is no image encoder: {CARD} describes none ({error}); {_ADD_AGAIN}"
            ) from error
        if actual != card.graph:
            raise ValueError(f"{folder / GRAPH} was altered: {_ADD_AGAIN}")
        return card
