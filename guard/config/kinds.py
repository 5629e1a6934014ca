"""The kinds of guards and engines, from metadata alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from guard.artifact import ArtifactMeta

Engine = Literal["transformers", "diffusers", "vllm"]
Kind = Literal["language", "images", "text"]
"""What a guard acts on: language models, image models, or the text of any model from outside."""

KINDS: Mapping[Engine, Kind] = {
    "transformers": "language",
    "diffusers": "images",
    "vllm": "language",
}

_SEAMS: Mapping[Kind, frozenset[str]] = {
    "language": frozenset({"hidden"}),
    "images": frozenset({"embedding", "projection", "attention", "latent", "guidance"}),
    "text": frozenset({"text"}),
}


def kind_of(meta: ArtifactMeta) -> Kind | None:
    """The kind of a guard, by its seams; None if they are of no kind or of several."""
    kinds = [kind for kind, seams in _SEAMS.items() if seams.intersection(meta.seams)]
    return kinds[0] if len(kinds) == 1 else None
