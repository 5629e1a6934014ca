"""The description of a converted text encoder: `config.json` beside the graph."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

CARD, GRAPH, TOKENIZER = "config.json", "encoder.onnx", "tokenizer.json"

_ADD_AGAIN = "make the folder again with `guard models add`"


@dataclass(frozen=True, slots=True)
class EncoderCard:
    """Name, origin and shape of a converted encoder.

    `source` and `tokenizer` are the SHA-256 (hex) of the original weights and of the vocabulary,
    `graph` that of the served file; `recipe` is the version of the conversion.
    """

    name: str
    source: str
    tokenizer: str
    graph: str
    layers: int
    width: int
    precision: str
    recipe: int = 1

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over everything that decides an embedding.

        The bytes of the graph are left out: another release of onnx may write the same graph in
        other bytes, and a guard fitted on one works with the other.
        """
        parts = {name: value for name, value in asdict(self).items() if name not in {"graph"}}
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def write(self, folder: Path) -> None:
        (folder / CARD).write_text(json.dumps(asdict(self), indent=1) + "\n", "utf-8")

    @classmethod
    def read(cls, folder: Path) -> EncoderCard:
        """The card of a folder, checked against its files. Raises ValueError where they differ."""
        try:
            card = cls(**json.loads((folder / CARD).read_text("utf-8")))
            actual = {name: sha256(folder / name) for name in (GRAPH, TOKENIZER)}
        except OSError as error:
            raise ValueError(f"{folder} is no text encoder: {error}; {_ADD_AGAIN}") from error
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{folder} is no text encoder: {CARD} describes none ({error}); {_ADD_AGAIN}"
            ) from error
        for name, recorded in ((GRAPH, card.graph), (TOKENIZER, card.tokenizer)):
            if actual[name] != recorded:
                raise ValueError(f"{folder / name} was altered: {_ADD_AGAIN}")
        return card


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
