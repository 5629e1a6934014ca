"""Families of vision-language models: prompts, tokens and scores are those of transformers."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vLLM has an environment of its own: make test-vllm")

from tests.vllm.driver import environment  # noqa: E402
from tests.vllm.play import MARK  # noqa: E402
from tests.vllm.vision.families import POLICIES, SEEDS  # noqa: E402
from tests.vllm.vision.models import KINDS  # noqa: E402


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What came of all of them, in one process."""
    folder = tmp_path_factory.mktemp("families")
    (folder / "config.toml").write_text("", "utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "tests.vllm.vision.families", str(folder), *KINDS],
        env=environment(folder / "config.toml"),
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert MARK in done.stdout, done.stdout[-5000:] + done.stderr[-5000:]
    found: dict[str, Any] = json.loads(done.stdout.split(MARK)[1].splitlines()[0])
    return found


IN_ORDER = {"gemma3", "paligemma"}
"""Their images' tokens attend to each other, which vLLM's attention on a CPU does not do."""


@pytest.mark.parametrize("kind", sorted(IN_ORDER))
def test_other_states_than_those_of_the_fit_are_refused(told: dict[str, Any], kind: str) -> None:
    assert "images whose tokens attend to each other on a CPU" in told[kind]["error"]


@pytest.mark.parametrize("kind", sorted(KINDS.keys() - IN_ORDER))
def test_guards_decide_in_vllm_as_in_transformers(told: dict[str, Any], kind: str) -> None:
    assert "error" not in told[kind], told[kind]["error"]
    expected, came = told[kind]["expected"], iter(told[kind]["came"])
    highest = max(one["score"] for one in expected)
    cached = 0
    for policy, _ in POLICIES:
        for seed in SEEDS:
            one, right = next(came), expected[seed]
            assert one["prompt"] == right["prompt"]
            fires = right["score"] == highest
            for guard in one["guard"]["guards"] if policy != "none" else ():
                assert guard["score"] == pytest.approx(right["score"], rel=1e-4)
                assert guard["fired"] == fires
            steered = policy == "firm" and fires
            assert (one["tokens"][0] != right["tokens"]) == steered
            cached += one["cached"] > 0
    # the requests that come last find a block of their prompt
    assert cached >= len(SEEDS)
