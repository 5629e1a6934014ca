"""The shipped classifiers, and prompts of 200 tokens."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from classifiers.embeddings.first_stage import FirstStage, FirstStages
from classifiers.embeddings.heads import EmbeddingHead, EmbeddingHeads
from classifiers.text.cascade import Cascade, ReadText
from classifiers.text.disguises.views import readings
from classifiers.text.encoder.card import TOKENIZER
from classifiers.text.encoder.model import TextEncoder
from guard.artifact import Artifact
from guard.models.sources import resolve_source

FITTED = Path("examples/screens/fitted")
TOKENS = 200
WORDS = (
    *("the", "of", "and", "to", "in", "is", "you", "that", "it", "he", "was", "for", "on", "are"),
    *("as", "with", "they", "at", "be", "this", "have", "from", "one", "had", "by", "word", "but"),
    *("not", "what", "all", "were", "when", "your", "can", "said", "there", "use", "each", "which"),
    *("do", "how", "their", "will", "up", "other", "about", "out", "many", "then", "them", "these"),
    *("so", "some", "would", "make", "like", "him", "into", "time", "has", "look", "more", "write"),
    *("number", "no", "way", "could", "people", "my", "than", "first", "water", "been", "call"),
)


@dataclass(frozen=True, slots=True)
class Shipped:
    """The heads of a folder by name, their thresholds, and what runs them, first stages too."""

    names: tuple[str, ...]
    thresholds: tuple[float, ...]
    stages: tuple[FirstStage | None, ...]
    held_out: tuple[frozenset[str], ...]
    """The sources that each fit has not seen."""
    encoder: TextEncoder
    tokenizer: Tokenizer
    cascade: Cascade

    @classmethod
    def load(cls, folder: Path = FITTED, encoder: str = "minilm") -> Shipped:
        paths = sorted(folder.glob("*.safetensors"))
        artifacts = [Artifact.load(path) for path in paths]
        parts = [(artifact.tensors, artifact.meta.settings) for artifact in artifacts]
        thresholds = tuple(float(str(settings["threshold"])) for _, settings in parts)
        heads = [EmbeddingHead.from_tensors(*part) for part in parts]
        stages = [FirstStage.of(*part) for part in parts]
        first = FirstStages(stages, heads, thresholds) if any(stages) else None
        source = Path(resolve_source(encoder))
        loaded = TextEncoder.load(source, threads=1)
        tokenizer = Tokenizer.from_file(str(source / TOKENIZER))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return cls(
            names=tuple(path.stem for path in paths),
            thresholds=thresholds,
            stages=tuple(stages),
            held_out=tuple(_held_out(artifact) for artifact in artifacts),
            encoder=loaded,
            tokenizer=tokenizer,
            cascade=Cascade(loaded, EmbeddingHeads(heads), first),
        )

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """Where each token of a text is."""
        encoding = self.tokenizer.encode(text, add_special_tokens=False)
        return list(encoding.offsets)

    @property
    def all_heads(self) -> tuple[int, ...]:
        return tuple(range(len(self.names)))


def _held_out(artifact: Artifact) -> frozenset[str]:
    sources = artifact.meta.calibration.get("held_out")
    return frozenset(map(str, sources)) if isinstance(sources, list) else frozenset()


def read_text(text: str, heads: tuple[int, ...] = ()) -> ReadText:
    """The text as a server reads it; with `heads`, its first stage may clear it for these."""
    return ReadText(text, readings(text), heads)


def random_texts(count: int, source: random.Random | None = None) -> list[str]:
    """Texts of TOKENS tokens, without a `source` the same in every run."""
    source = source or random.Random(0)
    return [" ".join(source.choices(WORDS, k=TOKENS - 2)) for _ in range(count)]
