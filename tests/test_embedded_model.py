"""What the README promises, on the embedded model: `make test-slow`."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import guard
from guard.commands.demo.questions import QUESTIONS

ROOT = Path(__file__).parent.parent

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def chat() -> Any:
    from guard.models.chat import TransformersChat

    return TransformersChat.load("smollm2", device="cpu")


@pytest.fixture(scope="module")
def demo() -> Iterator[list[dict[str, Any]]]:
    done = subprocess.run(
        [sys.executable, "-m", "guard", "demo", "--json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=600,
    )
    yield json.loads(done.stdout)["answers"]


def test_the_demo_guards_the_topic_and_nothing_else(demo: list[dict[str, Any]]) -> None:
    about_topic, others = demo[:2], demo[2:]
    assert [row["question"] for row in demo] == list(QUESTIONS)
    for row, fact in zip(about_topic, ("Rowling", "Hogwarts"), strict=True):
        assert fact in row["none"]["answer"]
        assert fact not in row["harry-potter"]["answer"]
        assert row["harry-potter"]["verdict"]["outcome"] == "steered"
    for row in others:
        assert row["none"]["answer"] == row["harry-potter"]["answer"]
        assert row["harry-potter"]["verdict"]["outcome"] == "pass"


def test_plain_python_says_what_the_server_says(chat: Any, demo: list[dict[str, Any]]) -> None:
    for row in demo:
        ids = torch.tensor([chat.prompt(row["question"]).tokens])
        with guard.attached(chat.model, "harry-potter", config=ROOT / "config.toml") as handle:
            output = chat.model.generate(input_ids=ids, max_new_tokens=48, do_sample=False)
        (verdict,) = handle.verdicts()
        assert chat.text(output[0, ids.shape[1] :].tolist()) == row["harry-potter"]["answer"]
        told = row["harry-potter"]["verdict"]
        assert verdict.outcome == told["outcome"]
        assert verdict.guards[0].score == pytest.approx(told["guards"][0]["score"], abs=1e-3)


def test_the_batching_engine_says_what_generate_says(chat: Any) -> None:
    prompts = [row for row in QUESTIONS for _ in range(2)]
    together = chat.answer(
        prompts, max_tokens=24, what="", progress=lambda what, total: lambda count: None
    )
    for prompt, said in zip(prompts, together, strict=True):
        ids = torch.tensor([chat.prompt(prompt).tokens])
        alone = chat.model.generate(input_ids=ids, max_new_tokens=24, do_sample=False)
        assert chat.text(alone[0, ids.shape[1] :].tolist()) == said.text
