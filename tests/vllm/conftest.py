"""What the tests inside vLLM share."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.vllm.checkpoint import save


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a small model, guards and config.toml."""
    made = tmp_path_factory.mktemp("vllm")
    save(made)
    return made


WAYS: Mapping[str, Mapping[str, str]] = {
    "v1": {"runner": "v1"},
    "v2": {"runner": "v2", "graphs": "FULL_AND_PIECEWISE"},
}
"""How vLLM runs on a CPU, and by default on a GPU."""


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> Mapping[str, str]:
    """Arguments of `tests.vllm.driver.run`."""
    return WAYS[request.param]
