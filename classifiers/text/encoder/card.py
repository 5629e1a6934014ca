"""The description of a converted text encoder: `config.json` beside the graph."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from classifiers.embeddings.encoders import fingerprint_of, sha256

CARD, GRAPH, TOKENIZER = "config.json", "encoder.onnx", "tokenizer.json"
WORD_VECTORS = "embeddings.word_embeddings.weight"
"""The name of the table of word vectors among the weights, and in the graph."""

_ADD_AGAIN = "make the folder again with `guard models add`"


@dataclass(frozen=True, slots=True)
class EncoderCard:
    """Name, origin and shape of a converted encoder.

    `source` and `tokenizer` are the SHA-256 (hex) of the original weights and of the vocabulary,
    `graph` that of the served file; `recipe` is the version of the conversion. `prefix` stands
    before every text.
    """

    name: str
    source: str
    tokenizer: str
    graph: str
    layers: int
    width: int
    precision: str
    recipe: int = 1
    prefix: str = ""

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over everything that decides an embedding, see `fingerprint_of`."""
        return fingerprint_of(self._fields())

    def write(self, folder: Path) -> None:
        (folder / CARD).write_text(json.dumps(self._fields(), indent=1) + "\n", "utf-8")

    def _fields(self) -> dict[str, Any]:
        """All fields, without an empty prefix: cards of earlier releases have none."""
        fields = asdict(self)
        return fields if self.prefix else {n: v for n, v in fields.items() if n != "prefix"}

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
