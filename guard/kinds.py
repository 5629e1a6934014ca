"""What a model makes, and so which guards are for it: told from metadata, loading nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from guard.artifact import ArtifactMeta

Engine = Literal["transformers", "diffusers", "vllm"]
Kind = Literal["language", "pictures"]

KINDS: Mapping[Engine, Kind] = {
    "transformers": "language",
    "diffusers": "pictures",
    "vllm": "language",
}

_SEAMS: Mapping[Kind, frozenset[str]] = {
    "language": frozenset({"hidden"}),
    "pictures": frozenset({"embedding", "projection", "attention", "latent", "guidance"}),
}


def kind_of(meta: ArtifactMeta) -> Kind | None:
    """The kind of model that a guard is for, by its seams; None where no kind has them."""
    kinds = [kind for kind, seams in _SEAMS.items() if seams.intersection(meta.seams)]
    return kinds[0] if len(kinds) == 1 else None
