from __future__ import annotations

from pathlib import Path

import pytest

from steering.engines.diffusion.families import Family
from tests.server.tiny_pipeline import save_pipeline


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Family]:
    """The folder of a tiny pipeline, and the pipeline."""
    folder = tmp_path_factory.mktemp("model")
    return folder, save_pipeline(folder)
