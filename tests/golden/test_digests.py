"""Every shipped artifact loads, is the recorded one, and has a method that this release knows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from guard.artifact import Artifact
from steering.methods import METHODS
from tests.golden.checkout import shipped_artifacts
from tests.golden.expected import read_recording
from tests.golden.requests import read_requests

ROOT = Path(__file__).parents[2]
RECORDED: dict[str, dict[str, str]] = read_recording()["artifacts"]
KNOWN_METHODS = {*METHODS}
TEXT_METHOD = "screen"
"""Of classifiers of text, which run outside of the model."""


@pytest.mark.parametrize("name", sorted(RECORDED))
def test_artifact_is_the_recorded_one(name: str) -> None:
    artifact = Artifact.load(ROOT / name)
    meta = artifact.meta
    actual = {"digest": artifact.digest, "method": meta.method, "concept": meta.concept}
    assert actual == RECORDED[name]
    assert meta.method in KNOWN_METHODS or meta.method == TEXT_METHOD


def test_every_shipped_artifact_is_recorded() -> None:
    assert shipped_artifacts(ROOT) == sorted(RECORDED)


def test_every_request_is_recorded() -> None:
    recorded: dict[str, Any] = read_recording()["outcomes"]
    assert [request.name for request in read_requests()] == list(recorded)
