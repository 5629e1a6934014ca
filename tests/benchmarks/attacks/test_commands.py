"""The commands write prompts for the evaluation, and resume where they stopped."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.attacks import command, concepts, denoiser, ring_a_bell
from benchmarks.attacks.target import Target
from guard.data.prompts import ImagePrompt, read_rows
from guard.fitting.prompts.swaps import greedy_swaps
from tests.benchmarks.attacks.commands import run
from tests.benchmarks.attacks.tiny import pipeline


@pytest.fixture(scope="module")
def target() -> Target:
    return Target(pipeline())


@pytest.fixture
def loaded(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "load", lambda source: target)


_RING = ("--candidates", "6", "--efforts", "0,2", "--seeds", "3", "--curve-seeds", "1")
_DENOISER = ("--views", "2", "--candidates", "3", "--top", "4", "--efforts", "0,1", "--seeds", "2")


@pytest.mark.usefixtures("loaded")
def test_ring_a_bell_writes_rows_for_the_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "a.jsonl"
    run(
        monkeypatch,
        ring_a_bell.main,
        *("--out", str(out), "--concepts", "knife,cat", "--prompts", "1"),
        *_RING,
    )
    rows = read_rows(out, ImagePrompt)
    assert [(row.concept, row.effort) for row in rows[:4]] == [("knife", 0)] + [("knife", 2)] * 3
    assert {row.kind for row in rows} == {"ring-a-bell"}
    assert len(rows) == 8
    assert not any("knife" in row.prompt for row in rows if row.concept == "knife")


@pytest.mark.usefixtures("loaded")
def test_an_attack_resumes_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "a.jsonl"
    common = ("--out", str(out), "--concepts", "knife", *_RING)
    run(monkeypatch, ring_a_bell.main, *common, "--prompts", "1")
    first = out.read_text("utf-8")
    run(monkeypatch, ring_a_bell.main, *common, "--prompts", "1")
    assert out.read_text("utf-8") == first
    run(monkeypatch, ring_a_bell.main, *common, "--prompts", "2")
    assert out.read_text("utf-8").startswith(first)
    assert {json.loads(line)["how"] for line in out.read_text("utf-8").splitlines()} == {
        "prompt 0",
        "prompt 1",
    }


@pytest.mark.usefixtures("loaded")
def test_searches_of_other_numbers_are_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = []
    for number in ("0", "7"):
        out = tmp_path / f"{number}.jsonl"
        options = ("--concepts", "knife", "--prompts", "1", "--first", number, *_RING)
        run(monkeypatch, ring_a_bell.main, "--out", str(out), *options)
        rows = read_rows(out, ImagePrompt)
        assert {row.how for row in rows} == {f"prompt {number}"}
        prompts.append(rows[0].prompt)
    assert prompts[0] != prompts[1]


@pytest.mark.usefixtures("loaded")
def test_a_spent_budget_starts_no_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "a.jsonl"
    run(monkeypatch, ring_a_bell.main, "--out", str(out), "--minutes", "-1", *_RING)
    assert not out.exists()


@pytest.mark.usefixtures("loaded")
@pytest.mark.parametrize(
    ("goal", "kind"),
    [("image", "unlearn-diff-atk"), ("picture", "unlearn-diff-atk"), ("prompt", "p4d")],
)
def test_the_denoiser_attack_writes_rows(
    goal: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "b.jsonl"
    run(
        monkeypatch,
        denoiser.main,
        *("--out", str(out), "--concepts", "twemoji", "--prompts", "1", "--goal", goal),
        *_DENOISER,
    )
    rows = read_rows(out, ImagePrompt)
    assert [row.effort for row in rows] == [0, 0, 1, 1]
    assert {row.kind for row in rows} == {kind}
    assert all(len(row.prompt.split()) == 8 for row in rows)


class _SameNoise(denoiser.DenoisingLoss):
    def renew(self, step: int) -> None:
        if step == 0:
            super().renew(step)


def test_the_denoiser_search_lowers_its_loss_under_fixed_noise(target: Target) -> None:
    objective = _SameNoise(
        target,
        target.latents(concepts.images("knife", 4, np.random.default_rng(0))),
        views=2,
        prompt="a knife",
        generator=torch.Generator().manual_seed(0),
        defense=denoiser.NoDefense(),
    )
    candidates = list(
        greedy_swaps(
            torch.tensor(target.content("blue pink white grey")),
            command.vocabulary(target, ()),
            objective,
            steps=6,
            candidates=8,
            top=16,
            generator=torch.Generator().manual_seed(0),
        )
    )
    losses = [candidate.loss for candidate in candidates]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0]


def test_frames_differ_in_the_concept_alone() -> None:
    for prompt, other in concepts.frames("knife", 5, np.random.default_rng(0)):
        assert "a knife" in prompt
        assert "knife" not in other
        assert prompt.split(" on a ")[1] == other.split(" on a ")[1]
    style = concepts.frames("twemoji", 3, np.random.default_rng(0))
    assert all("twemoji" in prompt and "noto" in other for prompt, other in style)


def test_real_images_show_the_concept_alone() -> None:
    images = concepts.images("knife", 3, np.random.default_rng(0))
    assert images.shape == (3, 3, 64, 64)
    assert float(images.min()) >= 0.0 and float(images.max()) <= 1.0


_BANS = ("pictures", "cars")


def test_words_that_name_it_are_forbidden(target: Target) -> None:
    assert concepts.words("santa-claus") >= {"santa", "claus", "christmas"}
    allowed = command.vocabulary(target, concepts.words("knife")).tolist()
    assert target.content("knife")[0] not in allowed
    assert target.content("banana")[0] in allowed
    words = dict(target.words)
    left = {ban: {words[t] for t in command.vocabulary(target, [ban]).tolist()} for ban in _BANS}
    # the word and its other forms, not every word with the same first letter
    assert not left["pictures"] & {"picture"} and "pizza" in left["pictures"]
    assert not left["cars"] & {"car"} and "cat" in left["cars"]
