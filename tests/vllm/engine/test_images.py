"""A model that sees images: guards decide over the tokens of an image as over those of text."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("vllm", reason="vLLM has an environment of its own: make test-vllm")

from tests.vllm.checkpoint import CONFIG, WIDTH, save_guard  # noqa: E402
from tests.vllm.driver import environment  # noqa: E402
from tests.vllm.engine.seeing import save_model  # noqa: E402
from tests.vllm.play import MARK  # noqa: E402


def seen(folder: Path, threshold: float, *, guarded: bool = True) -> list[dict[str, Any]]:
    """What came of the questions beside two images."""
    rng = np.random.default_rng(1)
    gates = rng.normal(size=(2, WIDTH)).astype("f4")
    for name, act in (("firm", 2), ("late", 1)):
        directions = (100 * rng.normal(size=(act, WIDTH))).astype("f4")
        save_guard(folder, name, gates, directions, threshold)
    (folder / "config.toml").write_text(CONFIG, "utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "tests.vllm.engine.seeing", str(folder)],
        env=environment(folder / "config.toml" if guarded else None),
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert MARK in done.stdout, done.stdout[-5000:] + done.stderr[-5000:]
    return list(json.loads(done.stdout.split(MARK)[1].splitlines()[0]))


def test_the_same_words_are_decided_on_by_the_image(tmp_path: Path) -> None:
    save_model(tmp_path / "model")
    quiet = [one for one in seen(tmp_path, 1e9) if one["guards"]]
    scores = [
        {round(one["guards"][0]["score"], 3) for one in quiet if one["image"] == image}
        for image in (0, 1)
    ]
    # the same each time, from the caches of the encoder and of prefixes too
    (first,), (second,) = scores
    assert abs(first - second) > 0.01
    came = seen(tmp_path, (first + second) / 2)
    bare = seen(tmp_path, 1e9, guarded=False)
    fires = 0 if first > second else 1
    for one, plain in zip(came, bare, strict=True):
        fired = [own["fired"] for own in one["guards"]]
        assert fired == [one["image"] == fires] * len(fired)
        steered = one["policy"] == "firm" and one["image"] == fires
        assert (one["tokens"] != plain["tokens"]) == steered, one
    assert {one["cached"] for one in came} == {0, 64}
