"""The recorded requests give what they gave when they were recorded, on the embedded models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.golden.checkout import Checkout
from tests.golden.comparison import differences
from tests.golden.expected import read_recording
from tests.golden.record import record
from tests.golden.requests import read_requests

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    return read_recording()


@pytest.fixture(scope="module")
def actual() -> dict[str, Any]:
    return record(Checkout(ROOT))


def test_artifacts_keep_their_digests(expected: dict[str, Any], actual: dict[str, Any]) -> None:
    assert actual["artifacts"] == expected["artifacts"]


def test_training_free_fits_give_the_same_tensors(
    expected: dict[str, Any], actual: dict[str, Any]
) -> None:
    assert actual["fitted"].keys() == expected["fitted"].keys()
    if actual["arithmetic"] == expected["arithmetic"]:
        assert actual["fitted"] == expected["fitted"]


@pytest.mark.parametrize("name", [request.name for request in read_requests()])
def test_outcome_is_as_recorded(
    name: str, expected: dict[str, Any], actual: dict[str, Any]
) -> None:
    found = differences(
        expected["outcomes"][name],
        actual["outcomes"][name],
        same_arithmetic=actual["arithmetic"] == expected["arithmetic"],
    )
    assert not found, "\n".join(found)
