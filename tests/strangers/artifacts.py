"""Artifacts and configurations for the strangers' methods, on tiny random models on disk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient
from typer.testing import CliRunner, Result

from guard.artifact import Artifact, ArtifactMeta
from guard.cli import app
from guard.config.schema import load_config
from server.app import create_app
from server.observe.metrics import Metrics
from server.services.build import build_services
from steering.methods import METHODS, Method


@contextmanager
def registered(*methods: Method) -> Iterator[None]:
    """As an entry point of the group `guard.methods` does: one entry, and nothing else."""
    with pytest.MonkeyPatch.context() as patch:
        for method in methods:
            patch.setitem(METHODS, method.name, method)
        yield


def save(
    path: Path,
    method: Method,
    *,
    fingerprint: str,
    width: int,
    layers: int,
    tensors: Mapping[str, Any],
    settings: Mapping[str, Any],
) -> None:
    """Write the artifact of a stranger's method."""
    meta = ArtifactMeta.model_validate(
        {
            "method": method.name,
            "concept": "object/knife",
            "created": "2026-01-31",
            "model": {
                "name": "tiny",
                "architecture": "Tiny",
                "fingerprint": fingerprint,
                "layers": layers,
                "width": width,
            },
            "seams": [method.seam],
            "settings": dict(settings),
        }
    )
    arrays = {name: np.ascontiguousarray(value, "f4") for name, value in tensors.items()}
    Artifact(meta, arrays).save(path)


@contextmanager
def served(config: Path) -> Iterator[TestClient]:
    """The app of `guard serve` over the configured models."""
    settings, metrics = load_config(config), Metrics()
    services = build_services(settings, lambda _request, verdict: metrics.verdicts.count(verdict))
    try:
        with TestClient(create_app(settings, services, metrics=metrics)) as client:
            yield client
    finally:
        for service in services.values():
            service.close()


def guard(*arguments: object) -> Result:
    """The command `guard`."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result
