"""The names of the product that the collection of reported cases uses, from where they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from classifiers.text.patterns.matching import shipped
from guard.artifact import Artifact, ArtifactMeta, FittedModel
from guard.config.policy_schema import PolicyConfig
from guard.config.schema import Config, GuardConfig

if TYPE_CHECKING:
    from steering.fingerprint import fingerprint

__all__ = [
    "Artifact",
    "ArtifactMeta",
    "Config",
    "FittedModel",
    "GuardConfig",
    "PolicyConfig",
    "fingerprint",
    "shipped",
]


def __getattr__(name: str) -> Any:
    # imported when it is used: it needs torch, which the other names do without
    if name == "fingerprint":
        from steering.fingerprint import fingerprint

        return fingerprint
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
