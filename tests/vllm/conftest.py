"""What the tests inside vLLM share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.vllm.checkpoint import save


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a small model, guards and config.toml."""
    made = tmp_path_factory.mktemp("vllm")
    save(made)
    return made
