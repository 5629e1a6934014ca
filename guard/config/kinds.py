"""What guards are for, and what engines make: told from metadata, loading nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from guard.artifact import ArtifactMeta

Engine = Literal["transformers", "diffusers", "vllm"]
Kind = Literal["language", "images", "text"]
"""What a guard is for; "text" is any model's that reads or writes text, seen from outside of it."""

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
    """The kind of thing that a guard is for, by its seams; None where no kind has them."""
    kinds = [kind for kind, seams in _SEAMS.items() if seams.intersection(meta.seams)]
    return kinds[0] if len(kinds) == 1 else None
