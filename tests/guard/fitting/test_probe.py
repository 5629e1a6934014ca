"""Fitting a probe on a painter whose pictures can be read by eye: a place a letter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from classifiers.probes import ProbeRecipe, Probes
from guard.errors import DataError
from guard.fitting import probe
from guard.fitting.concept_prompts import LabelledPrompt
from guard.fitting.probe import Drawing, ProbeFit, fit_probe
from guard.fitting.prompt_rates import calibrated
from guard.painter import Painter
from steering.fingerprint import fingerprint
from steering.methods.embedding import EmbeddingGuard
from steering.methods.screens import PICTURE_SCREENS
from tests.guard.fitting.test_concept_prompts import CONCEPT
from tests.guard.toy_pictures import ToyFamily

PLACES, WIDTH, SPLITS = 5, 6, 3
LETTERS = "KMJ"
"""What is drawn: the concept, what only the first split's pictures have, what is no concept."""
UNSURE = "?"
RECIPE = ProbeRecipe()
RATES = {"fpr": 0.05, "near_fpr": 0.1}


def prompts(count: int = 360) -> list[LabelledPrompt]:
    made = []
    for i in range(count):
        kind = ("unsafe", "far", "near")[i % 3]
        letter = {"unsafe": "K", "near": "j", "far": "x"}[kind]
        partner = f"x{i + 1:04d}" if kind == "unsafe" else ""
        made.append(LabelledPrompt(f"{letter}{i:04d}", kind, f"fold {i // 3 % SPLITS}", partner))
    # as they are made for a fit: the splits stand one behind the other
    return sorted(made, key=lambda prompt: prompt.split)


def states_of(texts: Sequence[str]) -> Tensor:
    """Noise, and for each letter of a text its own coordinate at one place."""
    found = []
    for text in texts:
        number = int("".join(filter(str.isdigit, text)))
        own = torch.randn(PLACES, WIDTH, generator=torch.Generator().manual_seed(number))
        for coordinate, letter in enumerate(LETTERS):
            if letter in text:
                own[number % PLACES, coordinate] += 7.0
        found.append(own)
    return torch.stack(found)


class Studio:
    """The painter, and what it was asked to draw."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.painter = Painter(ToyFamily(), name="toy", architecture="Toy")  # type: ignore[arg-type]
        self.drawn: list[str] = []
        self.asked: list[dict[str, Any]] = []
        self.likeness: dict[str, float] = {}
        monkeypatch.setattr(self.painter, "read", list)
        monkeypatch.setattr(self.painter, "draw", self._draw)
        monkeypatch.setattr(probe, "likeness_of", lambda *_args, **_how: self._alike)

    def _draw(self, texts: Sequence[str], *, tick: Callable[[int], None], **how: Any) -> Tensor:
        self.drawn += texts
        self.asked.append(how)
        tick(len(texts))
        return states_of(texts)

    def _alike(self, texts: Sequence[str], tick: Callable[[int], None]) -> Tensor:
        tick(len(texts))
        return torch.tensor([self._likeness(text) for text in texts])

    def _likeness(self, text: str) -> float:
        if UNSURE in text:
            return 0.5
        return 0.9 if "K" in text else 0.1

    def fit(self, given: Sequence[LabelledPrompt] | None = None, **changed: Any) -> ProbeFit:
        how: dict[str, Any] = {"progress": lambda *_: lambda _count: None, "seed": 3, **RATES}
        drawing = Drawing(count=changed.pop("count", 90), steps=8, guidance=3.0)
        rows = prompts() if given is None else given
        return fit_probe(self.painter, CONCEPT, rows, drawing, recipe=RECIPE, **(how | changed))


@pytest.fixture
def studio(monkeypatch: pytest.MonkeyPatch) -> Studio:
    return Studio(monkeypatch)


def changed(**letters: str) -> list[LabelledPrompt]:
    """The prompts with more letters behind them, where `KIND_SPLIT` says so, or `KIND`."""
    return [
        replace(
            prompt,
            text=prompt.text
            + letters.get(prompt.kind, "")
            + letters.get(f"{prompt.kind}_{prompt.split[-1]}", ""),
        )
        for prompt in prompts()
    ]


def test_a_fit_becomes_a_guard_that_sees_the_concept(studio: Studio) -> None:
    done = studio.fit()
    meta, tensors = done.artifact.meta, done.artifact.tensors
    assert (meta.method, meta.seams, meta.concept) == ("probe", ("latent",), CONCEPT.name)
    assert meta.model.fingerprint == fingerprint(studio.painter.family.denoiser)
    assert meta.model.width == WIDTH and tensors["weight.picture"].shape == (SPLITS, WIDTH)
    assert meta.settings["steps"] == 8 and meta.settings["guidance"] == 3.0
    assert float(str(meta.calibration["recall"])) > 0.9
    screen = PICTURE_SCREENS["probe"]([EmbeddingGuard("g", tensors, meta.settings)], "cpu")
    said = screen.sense(states_of(["K9001", "x9002", "j9003"]))[:, 0]
    assert (said > float(str(meta.settings["threshold"]))).tolist() == [True, False, False]


def test_pictures_are_drawn_as_they_were_asked_for(studio: Studio) -> None:
    studio.fit()
    assert studio.asked == [{"steps": 8, "guidance": 3.0, "seed": 3}]
    assert len(set(studio.drawn)) == len(studio.drawn)


def test_each_kind_is_drawn_as_often_as_wanted_from_all_splits(studio: Studio) -> None:
    studio.fit(count=60)
    known = {prompt.text: prompt for prompt in prompts()}
    chosen = [known[text] for text in studio.drawn]
    for kind, count in (("unsafe", 60), ("far", 60), ("near", 30)):
        splits = [prompt.split for prompt in chosen if prompt.kind == kind]
        assert len(splits) == count
        for split in range(SPLITS):
            assert abs(splits.count(f"fold {split}") - count / SPLITS) <= 2


def test_only_what_the_denoiser_is_sure_of_is_drawn(studio: Studio) -> None:
    doubtful = changed(unsafe_1=UNSURE, near_2=UNSURE)
    studio.fit(doubtful, count=100)
    assert not any(UNSURE in text for text in studio.drawn)
    splits = {(p.kind, p.split) for p in doubtful if p.text in studio.drawn}
    assert ("unsafe", "fold 1") not in splits and ("near", "fold 2") not in splits
    assert {("unsafe", "fold 0"), ("unsafe", "fold 2"), ("near", "fold 1")} <= splits


def test_a_hard_negative_that_shows_the_concept_is_not_drawn(studio: Studio) -> None:
    studio.fit(changed(near_0="K"))
    assert not any(text.startswith("j") and "K" in text for text in studio.drawn)


def test_a_split_is_scored_by_the_probe_that_was_not_taught_it(studio: Studio) -> None:
    """Only pictures of the first split have a letter that tells their labels: whoever was taught
    them leans on it."""
    done = studio.fit(changed(unsafe_0="M"))
    weights = done.artifact.tensors["weight.picture"]
    assert abs(weights[0, 1]) < 0.5 * min(weights[1, 1], weights[2, 1])
    known = {prompt.text: prompt for prompt in changed(unsafe_0="M")}
    biases = done.artifact.tensors["bias.picture"]
    members = [Probes(torch.tensor(weights[[i]]), torch.tensor(biases[[i]])) for i in range(SPLITS)]
    expected: dict[str, list[float]] = {"unsafe": [], "near": [], "far": []}
    for text in studio.drawn:
        member = members[int(known[text].split[-1])]
        expected[known[text].kind].append(float(member(states_of([text]))))
    for kind, scores in expected.items():
        assert sorted(done.scores[kind]) == pytest.approx(sorted(scores), abs=1e-4)


def test_the_threshold_keeps_the_rates_on_what_was_held_out(studio: Studio) -> None:
    done = studio.fit()
    threshold = done.artifact.meta.settings["threshold"]
    assert threshold == calibrated(done.scores, RATES["fpr"], RATES["near_fpr"])
    figures = done.artifact.meta.calibration
    for kind in ("far", "near"):
        own = done.scores[kind]
        fired = sum(score > float(str(threshold)) for score in own) / len(own)
        assert figures[f"{kind}_fired"] == pytest.approx(fired) and fired <= RATES["near_fpr"]
    looser = studio.fit(fpr=0.4, near_fpr=0.4).artifact.meta.settings["threshold"]
    assert float(str(looser)) < float(str(threshold))


def test_pictures_that_do_not_show_what_they_were_drawn_for_teach_nothing(
    studio: Studio,
) -> None:
    """A sixth of the prompts draws something else (J), which other probes take for no concept."""

    def instead(text: str) -> str:
        return text.replace("K", "J") if text.startswith("K") and int(text[1:]) % 18 == 0 else text

    rows = [replace(prompt, text=instead(prompt.text)) for prompt in prompts()]
    # the likeness is wrong about them
    studio._likeness = lambda text: 0.9 if text[0] in "KJ" else 0.1  # type: ignore[method-assign]
    done = studio.fit(rows)
    assert any(text.startswith("J") for text in studio.drawn)
    weights = done.artifact.tensors["weight.picture"]
    assert (weights[:, 2] < 0.2 * weights[:, 0]).all()
    # and are told of as what they are: not found
    missed = sum(text.startswith("J") for text in studio.drawn) / 90
    assert done.artifact.meta.calibration["recall"] == pytest.approx(1 - missed, abs=0.05)


@pytest.mark.parametrize("missing", ["unsafe", "safe", "a split"])
def test_pictures_of_both_kinds_are_needed_in_every_turn(studio: Studio, missing: str) -> None:
    kept: dict[str, Callable[[LabelledPrompt], bool]] = {
        "unsafe": lambda prompt: not prompt.unsafe,
        "safe": lambda prompt: prompt.unsafe,
        "a split": lambda prompt: prompt.split == "fold 0",
    }
    with pytest.raises(DataError, match="no pictures with the concept, or none without"):
        studio.fit(list(filter(kept[missing], prompts())))


def test_concepts_that_the_denoiser_does_not_know_cannot_be_fitted(studio: Studio) -> None:
    with pytest.raises(DataError, match="no pictures with the concept"):
        studio.fit(changed(unsafe=UNSURE))


@pytest.mark.parametrize("rates", [{"fpr": 0.001}, {"near_fpr": 0.001}])
def test_too_few_pictures_for_a_rate_are_an_error(studio: Studio, rates: dict[str, float]) -> None:
    with pytest.raises(DataError, match="0.10% needs 999"):
        studio.fit(**rates)


def test_the_same_seed_gives_the_same_artifact_and_progress_ends(studio: Studio) -> None:
    told: dict[str, list[int]] = {}

    def stages(what: str, total: int) -> Callable[[int], None]:
        told[what] = [total, 0]

        def advance(count: int) -> None:
            told[what][1] += count

        return advance

    first, second = studio.fit(progress=stages), studio.fit()
    assert first.artifact.digest == second.artifact.digest
    assert told and all(total == done for total, done in told.values())
