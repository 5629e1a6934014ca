"""One test for each of the tiny pipelines."""

from __future__ import annotations

import pytest

from tests.steering.engines.diffusion import tiny


@pytest.fixture(params=tiny.PIPELINES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)
