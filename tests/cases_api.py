"""The names of the product that the collection of reported cases uses, from where they are."""

from __future__ import annotations

from classifiers.text.patterns.matching import shipped
from guard.artifact import Artifact, ArtifactMeta, FittedModel
from guard.config.schema import Config, GuardConfig, PolicyConfig
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
