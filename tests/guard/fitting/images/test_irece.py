"""Fitting with an image model whose images are easy to read: a K is a spot, or there is none.

Trajectories and generated images are made up; the choices are those of the fit. The fit with a real
engine is in `tests/guard/commands/fit/images/test_irece.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from classifiers.latents import LatentRecipe
from guard.errors import DataError
from guard.fitting.images import irece, irece_search, latents
from guard.fitting.images.irece import fit_irece
from guard.fitting.images.irece_search import Settings
from guard.fitting.images.latents import TrainingImages
from guard.fitting.images.recording import RecordedTrajectory
from guard.fitting.prompts.concept_prompts import LabelledPrompt
from guard.fitting.prompts.rates import Calibrated, PromptRates, calibrated
from guard.models.images import ImageModel
from steering.images.latent import AttentionProbe, InspectionSchedule
from steering.methods import METHODS
from steering.methods.fitted import FittedGuard
from steering.methods.irece import REPLACEMENTS, standing_out
from tests.guard.fitting.prompts.test_concept_prompts import CONCEPT
from tests.guard.toy_images import ToyFamily

CHANNELS, SIDE, FOLDS, EVALUATIONS = 4, 8, 3, 4
LEVELS = [0.9, 0.7, 0.5, 0.2]
HEADS = [("noise", 0), ("spot", 0), ("spot", 1), ("corner", 0)]
LEARNING = LatentRecipe(steps=40, batch=16, rate=1e-2)
SHORT = LatentRecipe(steps=2, batch=8)
"""For tests in which the trained weights do not matter."""
RATES = PromptRates(0.05, 0.1)


def prompts(count: int = 240) -> list[LabelledPrompt]:
    labelled = []
    for i in range(count):
        kind = ("unsafe", "far", "near")[i % 3]
        letter = {"unsafe": "K", "near": "j", "far": "x"}[kind]
        labelled.append(LabelledPrompt(f"{letter}{i:04d}", kind, f"fold {i // 3 % FOLDS}"))
    return sorted(labelled, key=lambda prompt: prompt.split)


def number_of(text: str) -> int:
    return int("".join(filter(str.isdigit, text)))


def spot_of(text: str) -> Tensor:
    """Where a text's spot is, `[side, side]`."""
    place, where = number_of(text) * 7, torch.zeros(SIDE, SIDE)
    top, left = place // 5 % 5, place % 5
    where[top : top + 3, left : left + 3] = 1.0
    return where


def image_of(text: str, share: float = 1.0) -> Tensor:
    """Noise, and so much of a spot where there is a K."""
    generator = torch.Generator().manual_seed(number_of(text))
    pixels = torch.randn(CHANNELS, SIDE, SIDE, generator=generator)
    if "K" in text:
        pixels[:2] += 8.0 * share * spot_of(text)
    return pixels


class Studio:
    """The image model, and the calls it got."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.family = ToyFamily()
        self.image_model = ImageModel(self.family, name="toy", architecture="Toy")  # type: ignore[arg-type]
        self.family.networks = {"all": self.family.autoencoder}  # type: ignore[attr-defined]
        self.family.device = torch.device("cpu")  # type: ignore[attr-defined]
        self.recorded: list[tuple[list[str], int]] = []
        self.generated: list[tuple[FittedGuard | None, list[str]]] = []
        self.early = 0.0
        """The share of the spot that is visible at all inspections but the last two."""
        self.fades: dict[str, float] = dict.fromkeys(REPLACEMENTS, 0.0)
        """What is left of the spot under each replacement."""
        monkeypatch.setattr(self.image_model, "encode", list)
        monkeypatch.setattr(latents, "likeness_of", lambda *_args, **_how: self._alike)
        monkeypatch.setattr(irece, "record_trajectories", self._record)
        monkeypatch.setattr(irece, "_levels", lambda *_: LEVELS)
        keys = torch.ones(2, 8)
        monkeypatch.setattr(
            irece, "_probes", lambda *_: [AttentionProbe(*h, keys, keys) for h in HEADS]
        )
        monkeypatch.setattr(irece_search, "TrialImages", self._trial_images)

    def _alike(self, texts: Sequence[str]) -> Tensor:
        return torch.tensor([0.9 if "K" in t else 0.5 if "?" in t else 0.1 for t in texts])

    def _record(
        self,
        _image_model: ImageModel,
        texts: Sequence[str],
        _schedule: InspectionSchedule,
        probes: Sequence[AttentionProbe],
        *,
        advance: Callable[[int], None],
        **_how: Any,
    ) -> RecordedTrajectory:
        self.recorded.append((list(texts), len(probes)))
        advance(len(texts))
        shares = [self.early] * (EVALUATIONS - 2) + [0.9, 1.0]
        estimates = [torch.stack([image_of(text, share) for share in shares]) for text in texts]
        maps = []
        for text in texts:
            generator = torch.Generator().manual_seed(number_of(text) + 1)
            noise = torch.randn(len(HEADS), SIDE, SIDE, generator=generator)
            noise[1:3] = 0.3 * noise[1:3] + spot_of(text)
            noise[3, :2, :2] += 5.0
            maps.append(standing_out(noise)[: len(probes)])
        return RecordedTrajectory(torch.stack(estimates), torch.stack(maps))

    def _trial_images(self, _model: ImageModel, texts: Sequence[str], *_settings: Any) -> Any:
        return SimpleNamespace(generate=lambda guard: self._generate(texts, guard))

    def _generate(
        self, texts: Sequence[str], guard: FittedGuard | None
    ) -> tuple[Tensor, Tensor, float]:
        self.generated.append((guard, list(texts)))
        masks = torch.stack([spot_of(text) for text in texts])
        if guard is None:
            return torch.stack([image_of(t) for t in texts]), 0 * masks, 0.0
        left = self.fades[guard.settings["replacement"]]
        images = torch.stack([image_of(t, left) for t in texts])
        # an early inspection changes more of the rest
        images += 0.01 * guard.number("looks") * (1 - masks[:, None])
        return images, masks, guard.number("looks")

    def fit(self, labelled: Sequence[LabelledPrompt] | None = None, **changed: Any) -> Calibrated:
        settings: dict[str, Any] = {"inspections": 4, "trials": 8, "seed": 3, "recipe": SHORT}
        settings["rates"] = RATES
        settings["progress"] = lambda *_: lambda _count: None
        images = TrainingImages(count=changed.pop("count", 40), steps=8, guidance=3.0)
        rows = prompts() if labelled is None else labelled
        return fit_irece(self.image_model, CONCEPT, rows, images, **(settings | changed))


@pytest.fixture
def studio(monkeypatch: pytest.MonkeyPatch) -> Studio:
    return Studio(monkeypatch)


def test_a_fit_becomes_a_guard_that_localizes_the_concept(studio: Studio) -> None:
    fitted = studio.fit(recipe=LEARNING)
    meta, tensors = fitted.artifact.meta, fitted.artifact.tensors
    assert (meta.method, meta.seams) == ("irece", ("attention", "latent"))
    assert meta.model == studio.image_model.fitted_pipeline()
    assert (meta.settings["steps"], meta.settings["guidance"]) == (8, 3.0)
    assert float(str(meta.calibration["recall"])) > 0.9
    threshold = meta.settings["threshold"]
    assert threshold == calibrated(fitted.scores, RATES)
    # the heads that look at the spot, not the one that always looks into the corner
    named: Any = meta.settings["reads"]
    assert {layer for layer, _ in named} == {"spot"}
    eraser = METHODS["irece"].stacked([FittedGuard("g", tensors, meta.settings)], "cpu")
    scores, votes = eraser.sense(
        torch.stack([image_of(text) for text in ("K9001", "x9002", "j9003")]), [0]
    )
    assert (scores[:, 0] > float(str(threshold))).tolist() == [True, False, False]
    assert [(r.layer, r.head) for r in eraser.probes[0]] == [tuple(probe) for probe in named]
    assert tensors["weight0.latents"].shape[0] == FOLDS and votes.shape[:2] == (3, 1)


def test_the_first_inspection_is_where_the_concept_is_visible(studio: Studio) -> None:
    fitted = studio.fit(recipe=LEARNING)
    windows: Any = fitted.artifact.meta.calibration["windows"]
    assert [window["first_look"] for window in windows] == [0, 1, 2, 3]
    best = max(window["recall"] for window in windows)
    first = next(window["first_look"] for window in windows if window["recall"] >= best - 0.01)
    known = {round(level + 1e-3, 4): len(LEVELS) - index for index, level in enumerate(LEVELS)}
    level, inspections = (float(str(fitted.artifact.meta.settings[n])) for n in ("level", "looks"))
    assert known[round(level, 4)] == inspections <= len(LEVELS) - first
    # what is there from the first look on is found from there on
    studio.early = 1.0
    early: Any = studio.fit(recipe=LEARNING).artifact.meta.calibration["windows"]
    assert early[0]["recall"] >= max(window["recall"] for window in early) - 0.01


def test_attention_is_recorded_for_images_of_the_concept_only(studio: Studio) -> None:
    studio.fit()
    (shown, reads), (plain, none) = studio.recorded
    assert reads == len(HEADS) and none == 0
    assert all("K" in text for text in shown) and not any("K" in text for text in plain)


def test_a_trial_is_judged_by_a_classifier_that_was_not_trained_on_it(studio: Studio) -> None:
    studio.fit()
    fold = {prompt.text: prompt.split for prompt in prompts()}
    texts = {text for _, part in studio.generated for text in part}
    assert len({fold[text] for text in texts}) == 1 and len(texts) == 8
    guards = [guard for guard, _ in studio.generated if guard is not None]
    assert studio.generated[0][0] is None
    # every replacement, from three looks on at most, by all members but the judge
    assert {guard.settings["replacement"] for guard in guards} == set(REPLACEMENTS)
    assert {len(guard.tensors["weight0.latents"]) for guard in guards} == {FOLDS - 1}


@pytest.mark.parametrize("expected", REPLACEMENTS)
def test_the_replacement_is_the_one_that_removes_the_concept(studio: Studio, expected: str) -> None:
    studio.fades = {name: 0.0 if name == expected else 1.0 for name in REPLACEMENTS}
    fitted = studio.fit(recipe=LEARNING)
    assert fitted.artifact.meta.settings["replacement"] == expected
    trials: Any = fitted.artifact.meta.calibration["breaking"]
    gone = {trial["replacement"]: trial["gone"] for trial in trials}
    assert gone[expected] > 0.8 and max(v for k, v in gone.items() if k != expected) < 0.5
    # of those that do as well, the one that changes least of the rest
    same_replacement = [trial for trial in trials if trial["replacement"] == expected]
    least = min(same_replacement, key=lambda trial: trial["change_outside"])
    assert fitted.artifact.meta.settings["looks"] == least["looks"]


def test_a_fold_without_the_concept_is_no_judge(studio: Studio) -> None:
    labelled = [p for p in prompts() if p.kind != "unsafe" or p.split != "fold 0"]
    fitted = studio.fit(labelled, recipe=LEARNING)
    fold = {prompt.text: prompt.split for prompt in prompts()}
    (judge,) = {fold[text] for _, part in studio.generated for text in part}
    assert judge in ("fold 1", "fold 2")
    # the guard on trial is of all members but the judge
    members = fitted.artifact.tensors["weight0.latents"]
    others = [i for i in range(FOLDS) if f"fold {i}" != judge]
    guards = [guard for guard, _ in studio.generated if guard is not None]
    assert all((guard.tensors["weight0.latents"] == members[others]).all() for guard in guards)
    assert float(str(fitted.artifact.meta.calibration["recall"])) > 0.9


def test_the_same_seed_gives_the_same_artifact(studio: Studio) -> None:
    first, second, other = studio.fit(), studio.fit(), studio.fit(seed=4)
    assert first.artifact.digest == second.artifact.digest != other.artifact.digest


@pytest.mark.parametrize("missing", ["unsafe", "safe", "a split"])
def test_images_of_both_kinds_are_needed(studio: Studio, missing: str) -> None:
    kept_prompts: dict[str, Callable[[LabelledPrompt], bool]] = {
        "unsafe": lambda prompt: not prompt.unsafe,
        "safe": lambda prompt: prompt.unsafe,
        "a split": lambda prompt: prompt.split == "fold 0",
    }
    with pytest.raises(
        DataError, match="the prompts are not sufficient: .* with the concept and images"
    ):
        studio.fit(list(filter(kept_prompts[missing], prompts())))


@pytest.mark.parametrize("rates", [PromptRates(0.001, 0.1), PromptRates(0.05, 0.001)])
def test_too_few_images_for_a_rate_are_an_error(studio: Studio, rates: PromptRates) -> None:
    with pytest.raises(DataError, match="0.10% needs 999"):
        studio.fit(rates=rates)
    assert studio.generated == []


def test_images_that_are_not_finite_are_refused(
    studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoilt(*args: Any, **settings: Any) -> RecordedTrajectory:
        recorded = studio._record(*args, **settings)
        recorded.estimates[0, 0, 0, 0, 0] = torch.nan
        return recorded

    monkeypatch.setattr(irece, "record_trajectories", spoilt)
    with pytest.raises(DataError, match="not finite: try another dtype"):
        studio.fit()


def test_a_model_whose_trajectories_cannot_be_recorded_is_reported(
    studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any) -> list[AttentionProbe]:
        raise ValueError("DDIMScheduler predicts riddles")

    monkeypatch.setattr(irece, "_probes", refused)
    with pytest.raises(DataError, match="cannot be recorded: DDIMScheduler predicts riddles"):
        studio.fit()


def test_progress_reaches_its_totals(studio: Studio) -> None:
    stages_told: dict[str, list[int]] = {}

    def stages(stage: str, total: int) -> Callable[[int], None]:
        stages_told[stage] = [total]
        return stages_told[stage].append

    studio.fit(progress=stages)
    assert list(stages_told)[1:] == [
        *("generating the concept", "generating other images"),
        *("training classifiers", "breaking the concept"),
    ]
    assert all(total == sum(fitted) and min(fitted) >= 0 for total, *fitted in stages_told.values())


# -- the search -----------------------------------------------------------------------------------


def held_out(studio: Studio, maps: Tensor | None = None) -> irece_search.HeldOut:
    """Images of two folds, and classifiers that know the concept."""
    texts = [f"K{3 * i:04d}" for i in range(24)] + [f"x{3 * i + 1:04d}" for i in range(24)]
    images = torch.stack([image_of(text) for text in texts])
    label = torch.tensor(["K" in text for text in texts])
    members = [latents.train_latents(images, label, LEARNING, seed=seed) for seed in range(2)]
    recorded = studio._record(
        studio.image_model,
        texts[:24],
        InspectionSchedule(1.0, 1),
        [AttentionProbe(*h, torch.ones(1, 1), torch.ones(1, 1)) for h in HEADS],
        advance=lambda _: None,
    )
    probe_maps = recorded.maps if maps is None else maps
    return irece_search.HeldOut(images[:24], probe_maps, members, torch.arange(24) % 2, 0.0)


def test_heads_are_used_only_if_they_help(studio: Studio) -> None:
    settings, trials = irece_search.search_masks(held_out(studio), HEADS)
    assert set(settings.reads) <= {1, 2} and settings.reads
    assert settings.mask in irece_search.MASKS
    trials_made: Any = [trial for trial in trials if isinstance(trial, dict)]
    votes, with_reads = trials_made[0], trials_made[len(settings.reads)]
    assert votes["reads"] == [] and [tuple(r) for r in with_reads["reads"]] == [
        HEADS[i] for i in settings.reads
    ]
    # it is gone from most images, and less is written over for it than by the votes alone
    assert with_reads["gone"] > 0.8 and with_reads["area"] < votes["area"]
    assert all(trial["votes"] == irece_search.VOTES for trial in trials_made if not trial["reads"])


def test_without_readable_layers_the_votes_are_used(studio: Studio) -> None:
    images = held_out(studio, torch.zeros(24, 0, SIDE, SIDE))
    # where hardly anything is found it would seem best to look nowhere
    for threshold in (0.0, 99.0):
        settings, _ = irece_search.search_masks(replace(images, threshold=threshold), [])
        assert settings.reads == () and settings.votes > 0


def test_classifiers_judge_images_they_were_not_trained_on(studio: Studio) -> None:
    images = held_out(studio)
    blind = replace(
        images.members[1], biases=(*images.members[1].biases[:-1], torch.tensor([[-99.0]]))
    )
    half = replace(images, members=[images.members[0], blind])
    assert not images.gone(images.latents).any()
    assert half.gone(images.latents).tolist() == [i % 2 == 1 for i in range(24)]
    assert half.others(0) == [blind] and half.folds == [0, 1]


def test_settings_are_as_an_artifact_has_them() -> None:
    stages_told = Settings((3,), 1.0, 0.3).as_dict()
    assert (
        "reads" not in stages_told
        and stages_told["mask"] == 0.3
        and stages_told["replacement"] == "background"
    )
