"""The throughput benchmark generates every image, whenever its request joins."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from benchmarks.image_throughput import measure
from tests.server.tiny_pipeline import save_pipeline


def test_requests_that_join_late_are_measured_relative_to_one_batch(
    tmp_path: Path,
) -> None:
    arguments = Namespace(prompt="a cat", rows=3, apart=[1, 5], steps=2, guidance=3.0, rounds=2)
    result = measure(save_pipeline(tmp_path / "pipeline"), arguments)
    assert list(result) == ["0", "1", "5"]
    assert result["0"]["ratio"] == 1.0
    assert all(part["seconds"] > 0 for part in result.values())
