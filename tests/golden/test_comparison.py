"""The comparison notices what must not change, and tolerates rounding alone."""

from __future__ import annotations

import base64
from typing import Any

import httpx
import numpy as np
import pytest

from tests.golden.comparison import differences
from tests.golden.outcomes import SAME, THUMBNAIL, outcome_of, thumbnail


def image(level: int, sha256: str) -> dict[str, Any]:
    pixels = np.full((THUMBNAIL, THUMBNAIL, 3), level, np.uint8)
    return {"sha256": sha256, "thumbnail": base64.b64encode(pixels.tobytes()).decode()}


@pytest.mark.parametrize(
    ("expected", "actual"),
    [
        ({"text": "a"}, {"text": "b"}),
        ({"fired": False}, {"fired": True}),
        ({"fired": False}, {"fired": 0}),
        ({"position": 3}, {"position": 4}),
        ({"score": 1.0}, {"score": 1.001}),
        ({"score": 1.0}, {}),
        ({}, {"position": 0}),
        ({"guards": [{"score": 1.0}]}, {"guards": []}),
    ],
)
def test_changes_are_noticed(expected: Any, actual: Any) -> None:
    assert differences(expected, actual, same_arithmetic=False)


def test_rounding_of_scores_is_no_difference() -> None:
    assert not differences({"score": 10.42140}, {"score": 10.42145}, same_arithmetic=True)


def test_hashes_count_where_the_arithmetic_is_the_same() -> None:
    assert differences(image(9, "a"), image(9, "b"), same_arithmetic=True)
    assert not differences(image(9, "a"), image(9, "b"), same_arithmetic=False)


def test_thumbnails_must_be_alike_where_the_arithmetic_differs() -> None:
    assert not differences(image(9, "a"), image(10, "b"), same_arithmetic=False)
    assert differences(image(9, "a"), image(12, "b"), same_arithmetic=False)


def test_thumbnail_holds_the_means_of_blocks() -> None:
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[:2, :4] = 100
    small = thumbnail(pixels)
    assert small.shape == (THUMBNAIL, THUMBNAIL, 3)
    assert small[0, 0].tolist() == [50, 50, 50] and small[1:].max() == 0


def verdict(score: float) -> dict[str, Any]:
    guard = {"guard": "g", "score": score, "fired": True, "position": 0, "after": None}
    return {"model": "m", "policy": "p", "outcome": "pass", "unscreened": [], "guards": [guard]}


def test_outcome_leaves_out_identifiers_and_repeated_verdicts() -> None:
    choices = [
        {"text": "a", "finish_reason": "stop", "guard": verdict(1.0) | {"request_id": "r"}},
        {"text": "b", "finish_reason": "stop", "guard": verdict(0.5)},
    ]
    body = {"id": "x", "choices": choices, "usage": {"completion_tokens": 2}, "guard": verdict(1.0)}
    outcome = outcome_of(httpx.Response(200, json=body))
    kept = {"guard": "g", "score": 1.0, "fired": True, "position": 0}
    assert outcome["verdict"] == verdict(1.0) | {"guards": [kept]}
    assert [choice["verdict"] == SAME for choice in outcome["choices"]] == [True, False]
    assert "request_id" not in str(outcome)
