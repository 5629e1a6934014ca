"""Fitting a classifier on an image model who draws what it reads: a K somewhere, or none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from classifiers.latents import LatentClassifiers, LatentRecipe, train_latents
from guard.errors import DataError
from guard.fitting.images import latents
from guard.fitting.images.latents import TrainingImages, fit_latents
from guard.fitting.prompts.concept_prompts import LabelledPrompt
from guard.fitting.prompts.rates import Calibrated, PromptRates, calibrated
from guard.models.images import ImageModel
from steering.fingerprint import fingerprint
from steering.methods import METHODS
from steering.methods.fitted import FittedGuard
from tests.guard.fitting.prompts.test_concept_prompts import CONCEPT
from tests.guard.toy_images import WIDTH, ToyFamily

SIDE, SPLITS = 4, 3
UNSURE = "?"
LEARNING = LatentRecipe(steps=40, batch=32, rate=1e-2)
SHORT = LatentRecipe(steps=2, batch=8)
"""Where it does not matter what is learned."""
RATES = PromptRates(0.05, 0.1)


def prompts(count: int = 360) -> list[LabelledPrompt]:
    made = []
    for i in range(count):
        kind = ("unsafe", "far", "near")[i % 3]
        letter = {"unsafe": "K", "near": "j", "far": "x"}[kind]
        partner = f"x{i + 1:04d}" if kind == "unsafe" else ""
        made.append(LabelledPrompt(f"{letter}{i:04d}", kind, f"fold {i // 3 % SPLITS}", partner))
    # as they are made for a fit: the splits stand one behind the other
    return sorted(made, key=lambda prompt: prompt.split)


def latents_of(texts: Sequence[str]) -> Tensor:
    """Noise, and for a K the concept in three channels, at one place."""
    latents = []
    for text in texts:
        number = int("".join(filter(str.isdigit, text)))
        random = torch.Generator().manual_seed(number)
        pixels = torch.randn(WIDTH, SIDE, SIDE, generator=random)
        place = number // 3 % SIDE**2
        if "K" in text:
            pixels[:3, place // SIDE, place % SIDE] += 12.0
        latents.append(pixels)
    return torch.stack(latents)


def members(fitted: Calibrated) -> LatentClassifiers:
    """The classifiers of an artifact."""
    tensors = fitted.artifact.tensors
    layers = range(len(tensors) // 2)
    return LatentClassifiers(
        tuple(torch.tensor(tensors[f"weight{layer}.latents"]) for layer in layers),
        tuple(torch.tensor(tensors[f"bias{layer}.latents"]) for layer in layers),
    )


class Studio:
    """The image_model, and what it was asked to draw."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.image_model = ImageModel(ToyFamily(), name="toy", architecture="Toy")  # type: ignore[arg-type]
        self.drawn: list[str] = []
        self.asked: list[dict[str, Any]] = []
        self.weighed: list[str] = []
        monkeypatch.setattr(self.image_model, "encode", list)
        monkeypatch.setattr(self.image_model, "generate_latents", self._generate)
        monkeypatch.setattr(latents, "likeness_of", lambda *_args, **_how: self._alike)

    def _generate(
        self, texts: Sequence[str], *, advance: Callable[[int], None], **settings: Any
    ) -> Tensor:
        self.drawn += texts
        self.asked.append(settings)
        advance(len(texts))
        return latents_of(texts)

    def _alike(self, texts: Sequence[str]) -> Tensor:
        self.weighed += texts
        return torch.tensor([self._likeness(text) for text in texts])

    def _likeness(self, text: str) -> float:
        if UNSURE in text:
            return 0.5
        return 0.9 if "K" in text else 0.1

    def fit(self, labelled: Sequence[LabelledPrompt] | None = None, **changed: Any) -> Calibrated:
        settings: dict[str, Any] = {"progress": lambda *_: lambda _count: None, "seed": 3}
        settings |= {"recipe": SHORT, "rates": RATES}
        images = TrainingImages(count=changed.pop("count", 40), steps=8, guidance=3.0)
        rows = prompts() if labelled is None else labelled
        return fit_latents(self.image_model, CONCEPT, rows, images, **(settings | changed))


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
    fitted = studio.fit(recipe=LEARNING)
    meta, tensors = fitted.artifact.meta, fitted.artifact.tensors
    assert (meta.method, meta.seams, meta.concept) == ("latents", ("latent",), CONCEPT.name)
    assert meta.model.fingerprint == fingerprint(studio.image_model.family.autoencoder)
    assert meta.model.width == WIDTH
    assert {len(tensor) for tensor in tensors.values()} == {SPLITS}
    assert meta.settings["steps"] == 8 and meta.settings["guidance"] == 3.0
    assert float(str(meta.calibration["recall"])) > 0.9
    screen = METHODS["latents"].stacked([FittedGuard("g", tensors, meta.settings)], "cpu")
    scores = screen.sense(latents_of(["K9001", "x9002", "j9003"]), [0])[:, 0]
    assert (scores > float(str(meta.settings["threshold"]))).tolist() == [True, False, False]


def test_images_are_generated_with_the_settings_of_the_fit(studio: Studio) -> None:
    studio.fit()
    assert studio.asked == [{"steps": 8, "guidance": 3.0, "seed": 3}]
    assert len(set(studio.drawn)) == len(studio.drawn)


def test_each_kind_is_generated_as_often_as_wanted_from_all_splits(studio: Studio) -> None:
    studio.fit(count=30)
    known = {prompt.text: prompt for prompt in prompts()}
    chosen = [known[text] for text in studio.drawn]
    kinds = Counter(prompt.kind for prompt in chosen)
    assert kinds == {"unsafe": 30, "far": 60, "near": 15}
    for kind, count in kinds.items():
        splits = Counter(prompt.split for prompt in chosen if prompt.kind == kind)
        assert len(splits) == SPLITS and min(splits.values()) >= count / SPLITS / 3
    # as they were given: what is behind one another there has seeds behind one another
    assert studio.drawn == [prompt.text for prompt in prompts() if prompt.text in studio.drawn]


def test_another_seed_chooses_other_prompts(studio: Studio) -> None:
    studio.fit(count=30)
    first, studio.drawn = set(studio.drawn), []
    studio.fit(count=30, seed=4)
    assert len(first & set(studio.drawn)) < 0.8 * len(first)


def test_all_prompts_are_used_if_there_are_too_few(studio: Studio) -> None:
    studio.fit(count=100)
    assert Counter(text[0] for text in studio.drawn) == {"K": 100, "x": 120, "j": 50}


def test_no_more_likenesses_are_computed_than_needed(
    studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latents, "_BATCH", 16)
    studio.fit(count=40)
    assert Counter(text[0] for text in studio.weighed) == {"K": 48, "x": 80, "j": 32}
    # where some are not sure, more are asked about
    studio.weighed = []
    studio.fit(changed(unsafe_1=UNSURE), count=40)
    requests = [text for text in studio.weighed if text.startswith("K")]
    sure = [UNSURE not in text for text in requests]
    assert sum(sure) >= 40 > sum(sure[:-16]) and len(requests) > 48


@pytest.mark.parametrize("kind", ["unsafe", "far", "near"])
def test_only_prompts_that_the_denoiser_is_sure_of_are_used(studio: Studio, kind: str) -> None:
    doubtful = changed(**{f"{kind}_1": UNSURE})
    studio.fit(doubtful, count=100)
    assert any(UNSURE in text for text in studio.weighed)
    assert not any(UNSURE in text for text in studio.drawn)
    splits = {(p.kind, p.split) for p in doubtful if p.text in studio.drawn}
    every = {(p.kind, p.split) for p in doubtful}
    assert splits == every - {(kind, "fold 1")}


def test_prompts_that_were_chosen_before_are_used_as_they_are(studio: Studio) -> None:
    studio.fit(changed(unsafe_1=UNSURE), sure=True)
    assert not studio.weighed and len(studio.drawn) == len(prompts())
    assert any(UNSURE in text for text in studio.drawn)


@pytest.mark.parametrize(("kind", "letter"), [("near", "j"), ("far", "x")])
def test_safe_prompts_whose_image_shows_the_concept_are_left_out(
    studio: Studio, kind: str, letter: str
) -> None:
    studio.fit(changed(**{f"{kind}_0": "K"}))
    assert any(text.startswith(letter) for text in studio.drawn)
    assert not any(text.startswith(letter) and "K" in text for text in studio.drawn)


def test_a_split_is_scored_by_the_classifier_that_was_not_trained_on_it(
    studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    training_data: list[tuple[Tensor, Tensor]] = []

    def spied(images: Tensor, shown: Tensor, *args: Any, **settings: Any) -> LatentClassifiers:
        training_data.append((images, shown))
        return train_latents(images, shown, *args, **settings)

    monkeypatch.setattr(latents, "train_latents", spied)
    fitted = studio.fit()
    known = {prompt.text: prompt for prompt in prompts()}
    parts = [known[text].split for text in studio.drawn]
    for part, (images, shown) in enumerate(training_data):
        others = [
            text for text, split in zip(studio.drawn, parts, strict=True) if split != f"fold {part}"
        ]
        assert torch.equal(images, latents_of(others))
        assert shown.tolist() == [known[text].unsafe for text in others]
    own, expected = members(fitted), dict[str, list[float]](unsafe=[], near=[], far=[])
    for text, split in zip(studio.drawn, parts, strict=True):
        scores = own(latents_of([text]))[0, int(split[-1])]
        expected[known[text].kind].append(float(scores))
    assert len(training_data) == len(own) == SPLITS
    assert {kind: list(scores) for kind, scores in fitted.scores.items()} == {
        kind: pytest.approx(scores, abs=1e-3) for kind, scores in expected.items()
    }


def test_the_threshold_keeps_the_rates_on_held_out_images(studio: Studio) -> None:
    fitted = studio.fit()
    threshold = fitted.artifact.meta.settings["threshold"]
    assert threshold == calibrated(fitted.scores, RATES)
    figures = fitted.artifact.meta.calibration
    for kind, rate in (("far", RATES.far), ("near", RATES.near)):
        own = fitted.scores[kind]
        fired = sum(score > float(str(threshold)) for score in own) / len(own)
        assert figures[f"{kind}_fired"] == pytest.approx(fired) and fired <= rate
    looser = studio.fit(rates=PromptRates(0.4, 0.4)).artifact.meta.settings["threshold"]
    assert float(str(looser)) < float(str(threshold))


@pytest.mark.parametrize("missing", ["unsafe", "safe", "a split"])
def test_images_of_both_kinds_are_needed_in_every_fold(studio: Studio, missing: str) -> None:
    kept: dict[str, Callable[[LabelledPrompt], bool]] = {
        "unsafe": lambda prompt: not prompt.unsafe,
        "safe": lambda prompt: prompt.unsafe,
        "a split": lambda prompt: prompt.split == "fold 0",
    }
    with pytest.raises(
        DataError, match="the prompts are not sufficient: .* with the concept and images"
    ):
        studio.fit(list(filter(kept[missing], prompts())))


def test_concepts_that_the_denoiser_does_not_know_cannot_be_fitted(studio: Studio) -> None:
    with pytest.raises(
        DataError, match="the prompts are not sufficient: .* with the concept and images"
    ):
        studio.fit(changed(unsafe=UNSURE))


def test_a_denoiser_that_is_sure_of_nothing_is_reported(studio: Studio) -> None:
    with pytest.raises(DataError, match="the denoiser is sure of no prompt"):
        studio.fit(changed(unsafe=UNSURE, far=UNSURE, near=UNSURE))
    assert studio.drawn == []


@pytest.mark.parametrize("rates", [PromptRates(0.001, 0.1), PromptRates(0.05, 0.001)])
def test_too_few_images_for_a_rate_are_an_error(studio: Studio, rates: PromptRates) -> None:
    with pytest.raises(DataError, match="0.10% needs 999"):
        studio.fit(rates=rates)


@pytest.mark.parametrize("fault", [torch.nan, torch.inf])
def test_images_that_are_not_finite_are_refused(
    studio: Studio, monkeypatch: pytest.MonkeyPatch, fault: float
) -> None:
    def overflown(texts: Sequence[str], **_how: Any) -> Tensor:
        latents = latents_of(texts)
        latents[7, 1, 2, 3] = fault
        return latents

    monkeypatch.setattr(studio.image_model, "generate_latents", overflown)
    with pytest.raises(DataError, match="not finite: try another dtype"):
        studio.fit()


def test_half_precision_images_are_trained_on_and_scored_in_single(
    studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        studio.image_model, "generate_latents", lambda texts, **_how: latents_of(texts).half()
    )
    assert float(str(studio.fit(recipe=LEARNING).artifact.meta.calibration["recall"])) > 0.9


def test_the_same_seed_gives_the_same_artifact(studio: Studio) -> None:
    first, second, other = studio.fit(), studio.fit(), studio.fit(seed=4)
    assert first.artifact.digest == second.artifact.digest != other.artifact.digest


@pytest.mark.parametrize(
    ("count", "letters"),
    [
        (40, {}),
        (100, {}),
        (40, {"unsafe_1": UNSURE, "near": UNSURE + "K"}),
        (90, {"far_0": UNSURE}),
    ],
)
def test_progress_reaches_its_totals(studio: Studio, count: int, letters: dict[str, str]) -> None:
    counts: dict[str, list[int]] = {}

    def stages(stage: str, total: int) -> Callable[[int], None]:
        counts[stage] = [total]
        return counts[stage].append

    if "near" in letters:
        with pytest.raises(
            DataError, match="held-out prompts like its hard negatives, there are 0"
        ):
            studio.fit(changed(**letters), count=count, progress=stages)
        assert list(counts) == ["choosing prompts"]
    else:
        studio.fit(changed(**letters), count=count, progress=stages)
        assert list(counts) == ["choosing prompts", "generating images", "training classifiers"]
    assert counts["choosing prompts"][0] == count + 2 * count + count // 2
    assert all(total == sum(fitted) and min(fitted) >= 0 for total, *fitted in counts.values())
