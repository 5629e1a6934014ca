"""Fitting on a painter whose images are easy to read: a K is a spot somewhere, or there is none.

What is watched and drawn is made up; the choices are the fit's own. The way through an engine is
in `test_fit_irece_cli.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
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
from guard.fitting.prompts.rates import Calibrated, calibrated
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
"""Where it does not matter what is learned."""
RATES = {"fpr": 0.05, "near_fpr": 0.1}


def prompts(count: int = 240) -> list[LabelledPrompt]:
    made = []
    for i in range(count):
        kind = ("unsafe", "far", "near")[i % 3]
        letter = {"unsafe": "K", "near": "j", "far": "x"}[kind]
        made.append(LabelledPrompt(f"{letter}{i:04d}", kind, f"fold {i // 3 % FOLDS}"))
    return sorted(made, key=lambda prompt: prompt.split)


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
    draw = torch.Generator().manual_seed(number_of(text))
    own = torch.randn(CHANNELS, SIDE, SIDE, generator=draw)
    if "K" in text:
        own[:2] += 8.0 * share * spot_of(text)
    return own


class Studio:
    """The painter, and what it was asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.family = ToyFamily()
        self.painter = ImageModel(self.family, name="toy", architecture="Toy")  # type: ignore[arg-type]
        self.family.networks = {"all": self.family.autoencoder}  # type: ignore[attr-defined]
        self.family.device = torch.device("cpu")  # type: ignore[attr-defined]
        self.watched: list[tuple[list[str], int]] = []
        self.broken: list[tuple[FittedGuard | None, list[str]]] = []
        self.early = 0.0
        """How much of the spot is there at all looks but the last two."""
        self.fades: dict[str, float] = dict.fromkeys(REPLACEMENTS, 0.0)
        """What is left of the spot under each replacement."""
        monkeypatch.setattr(self.painter, "read", list)
        monkeypatch.setattr(latents, "likeness_of", lambda *_args, **_how: self._alike)
        monkeypatch.setattr(irece, "watch", self._watch)
        monkeypatch.setattr(irece, "_levels", lambda *_: LEVELS)
        keys = torch.ones(2, 8)
        monkeypatch.setattr(
            irece, "_reads", lambda *_: [AttentionProbe(*h, keys, keys) for h in HEADS]
        )
        monkeypatch.setattr(irece_search, "_drawn", self._drawn)

    def _alike(self, texts: Sequence[str]) -> Tensor:
        return torch.tensor([0.9 if "K" in t else 0.5 if "?" in t else 0.1 for t in texts])

    def _watch(
        self,
        _painter: ImageModel,
        texts: Sequence[str],
        _looks: InspectionSchedule,
        reads: Sequence[AttentionProbe],
        *,
        tick: Callable[[int], None],
        **_how: Any,
    ) -> RecordedTrajectory:
        self.watched.append((list(texts), len(reads)))
        tick(len(texts))
        shares = [self.early] * (EVALUATIONS - 2) + [0.9, 1.0]
        estimates = [torch.stack([image_of(text, share) for share in shares]) for text in texts]
        maps = []
        for text in texts:
            draw = torch.Generator().manual_seed(number_of(text) + 1)
            noise = torch.randn(len(HEADS), SIDE, SIDE, generator=draw)
            noise[1:3] = 0.3 * noise[1:3] + spot_of(text)
            noise[3, :2, :2] += 5.0
            maps.append(standing_out(noise)[: len(reads)])
        return RecordedTrajectory(torch.stack(estimates), torch.stack(maps))

    def _drawn(
        self, _p: ImageModel, texts: Sequence[str], guard: FittedGuard | None, *_how: Any
    ) -> tuple[Tensor, Tensor, float]:
        self.broken.append((guard, list(texts)))
        masks = torch.stack([spot_of(text) for text in texts])
        if guard is None:
            return torch.stack([image_of(t) for t in texts]), 0 * masks, 0.0
        left = self.fades[guard.settings["replacement"]]
        made = torch.stack([image_of(t, left) for t in texts])
        # what looks early changes more of the rest
        made += 0.01 * guard.number("looks") * (1 - masks[:, None])
        return made, masks, guard.number("looks")

    def fit(self, given: Sequence[LabelledPrompt] | None = None, **changed: Any) -> Calibrated:
        how: dict[str, Any] = {"looks": 4, "trials": 8, "seed": 3, "recipe": SHORT, **RATES}
        how["progress"] = lambda *_: lambda _count: None
        drawing = TrainingImages(count=changed.pop("count", 40), steps=8, guidance=3.0)
        rows = prompts() if given is None else given
        return fit_irece(self.painter, CONCEPT, rows, drawing, **(how | changed))


@pytest.fixture
def studio(monkeypatch: pytest.MonkeyPatch) -> Studio:
    return Studio(monkeypatch)


def test_a_fit_becomes_a_guard_that_finds_the_place(studio: Studio) -> None:
    done = studio.fit(recipe=LEARNING)
    meta, tensors = done.artifact.meta, done.artifact.tensors
    assert (meta.method, meta.seams) == ("irece", ("attention", "latent"))
    assert meta.model == studio.painter.fitted_pipeline()
    assert (meta.settings["steps"], meta.settings["guidance"]) == (8, 3.0)
    assert float(str(meta.calibration["recall"])) > 0.9
    threshold = meta.settings["threshold"]
    assert threshold == calibrated(done.scores, RATES["fpr"], RATES["near_fpr"])
    # the heads that look at the spot, not the one that always looks into the corner
    named: Any = meta.settings["reads"]
    assert {layer for layer, _ in named} == {"spot"}
    eraser = METHODS["irece"].stacked([FittedGuard("g", tensors, meta.settings)], "cpu")
    said, votes = eraser.sense(
        torch.stack([image_of(text) for text in ("K9001", "x9002", "j9003")]), [0]
    )
    assert (said[:, 0] > float(str(threshold))).tolist() == [True, False, False]
    assert [(r.layer, r.head) for r in eraser.probes[0]] == [tuple(each) for each in named]
    assert tensors["weight0.latents"].shape[0] == FOLDS and votes.shape[:2] == (3, 1)


def test_it_looks_from_when_there_is_something_to_be_seen(studio: Studio) -> None:
    done = studio.fit(recipe=LEARNING)
    windows: Any = done.artifact.meta.calibration["windows"]
    assert [each["first_look"] for each in windows] == [0, 1, 2, 3]
    best = max(each["recall"] for each in windows)
    first = next(each["first_look"] for each in windows if each["recall"] >= best - 0.01)
    known = {round(level + 1e-3, 4): len(LEVELS) - at for at, level in enumerate(LEVELS)}
    level, looks = (float(str(done.artifact.meta.settings[n])) for n in ("level", "looks"))
    assert known[round(level, 4)] == looks <= len(LEVELS) - first
    # what is there from the first look on is found from there on
    studio.early = 1.0
    early: Any = studio.fit(recipe=LEARNING).artifact.meta.calibration["windows"]
    assert early[0]["recall"] >= max(each["recall"] for each in early) - 0.01


def test_only_the_concepts_images_are_asked_for_places(studio: Studio) -> None:
    studio.fit()
    (shown, reads), (plain, none) = studio.watched
    assert reads == len(HEADS) and none == 0
    assert all("K" in text for text in shown) and not any("K" in text for text in plain)


def test_a_trial_is_judged_by_who_was_not_taught_it(studio: Studio) -> None:
    studio.fit()
    fold = {prompt.text: prompt.split for prompt in prompts()}
    texts = {text for _, part in studio.broken for text in part}
    assert len({fold[text] for text in texts}) == 1 and len(texts) == 8
    guards = [guard for guard, _ in studio.broken if guard is not None]
    assert studio.broken[0][0] is None
    # every replacement, from three looks on at most, by all members but the judge
    assert {guard.settings["replacement"] for guard in guards} == set(REPLACEMENTS)
    assert {len(guard.tensors["weight0.latents"]) for guard in guards} == {FOLDS - 1}


@pytest.mark.parametrize("best", REPLACEMENTS)
def test_the_replacement_is_the_one_under_which_it_is_gone(studio: Studio, best: str) -> None:
    studio.fades = {name: 0.0 if name == best else 1.0 for name in REPLACEMENTS}
    done = studio.fit(recipe=LEARNING)
    assert done.artifact.meta.settings["replacement"] == best
    tried: Any = done.artifact.meta.calibration["breaking"]
    gone = {each["replacement"]: each["gone"] for each in tried}
    assert gone[best] > 0.8 and max(v for k, v in gone.items() if k != best) < 0.5
    # of those that do as well, the one that changes least of the rest
    own = [each for each in tried if each["replacement"] == best]
    least = min(own, key=lambda each: each["change_outside"])
    assert done.artifact.meta.settings["looks"] == least["looks"]


def test_a_fold_that_shows_none_judges_none(studio: Studio) -> None:
    kept = [p for p in prompts() if p.kind != "unsafe" or p.split != "fold 0"]
    done = studio.fit(kept, recipe=LEARNING)
    fold = {prompt.text: prompt.split for prompt in prompts()}
    (judge,) = {fold[text] for _, part in studio.broken for text in part}
    assert judge in ("fold 1", "fold 2")
    # the guard on trial is of all members but the judge
    every = done.artifact.tensors["weight0.latents"]
    others = [i for i in range(FOLDS) if f"fold {i}" != judge]
    tried = [guard for guard, _ in studio.broken if guard is not None]
    assert all((guard.tensors["weight0.latents"] == every[others]).all() for guard in tried)
    assert float(str(done.artifact.meta.calibration["recall"])) > 0.9


def test_the_same_seed_gives_the_same_artifact(studio: Studio) -> None:
    first, second, other = studio.fit(), studio.fit(), studio.fit(seed=4)
    assert first.artifact.digest == second.artifact.digest != other.artifact.digest


@pytest.mark.parametrize("missing", ["unsafe", "safe", "a split"])
def test_images_of_both_kinds_are_needed(studio: Studio, missing: str) -> None:
    kept: dict[str, Callable[[LabelledPrompt], bool]] = {
        "unsafe": lambda prompt: not prompt.unsafe,
        "safe": lambda prompt: prompt.unsafe,
        "a split": lambda prompt: prompt.split == "fold 0",
    }
    with pytest.raises(DataError, match="the prompts do not do: .* with the concept and images"):
        studio.fit(list(filter(kept[missing], prompts())))


@pytest.mark.parametrize("rates", [{"fpr": 0.001}, {"near_fpr": 0.001}])
def test_too_few_images_for_a_rate_are_an_error(studio: Studio, rates: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="0.10% needs 999"):
        studio.fit(**rates)
    assert studio.broken == []


def test_images_that_are_not_finite_teach_nothing(
    studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoilt(*given: Any, **how: Any) -> RecordedTrajectory:
        seen = studio._watch(*given, **how)
        seen.estimates[0, 0, 0, 0, 0] = torch.nan
        return seen

    monkeypatch.setattr(irece, "watch", spoilt)
    with pytest.raises(DataError, match="not finite: another dtype may help"):
        studio.fit()


def test_a_model_that_cannot_be_followed_is_told_of(
    studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any) -> list[AttentionProbe]:
        raise ValueError("DDIMScheduler predicts riddles")

    monkeypatch.setattr(irece, "_reads", refused)
    with pytest.raises(DataError, match="cannot be followed: DDIMScheduler predicts riddles"):
        studio.fit()


def test_progress_ends_where_it_said(studio: Studio) -> None:
    told: dict[str, list[int]] = {}

    def stages(what: str, total: int) -> Callable[[int], None]:
        told[what] = [total]
        return told[what].append

    studio.fit(progress=stages)
    assert list(told)[1:] == [
        *("drawing the concept", "drawing else", "training classifiers", "breaking the concept"),
    ]
    assert all(total == sum(done) and min(done) >= 0 for total, *done in told.values())


# -- the search -----------------------------------------------------------------------------------


def held_out(studio: Studio, maps: Tensor | None = None) -> irece_search.HeldOut:
    """Images of two folds, and classifiers that know the concept."""
    texts = [f"K{3 * i:04d}" for i in range(24)] + [f"x{3 * i + 1:04d}" for i in range(24)]
    images = torch.stack([image_of(text) for text in texts])
    label = torch.tensor(["K" in text for text in texts])
    members = [latents.train_latents(images, label, LEARNING, seed=seed) for seed in range(2)]
    seen = studio._watch(
        studio.painter,
        texts[:24],
        InspectionSchedule(1.0, 1),
        [AttentionProbe(*h, torch.ones(1, 1), torch.ones(1, 1)) for h in HEADS],
        tick=lambda _: None,
    )
    own = seen.maps if maps is None else maps
    return irece_search.HeldOut(images[:24], own, members, torch.arange(24) % 2, 0.0)


def test_places_are_read_where_that_helps_and_nowhere_else(studio: Studio) -> None:
    found, tried = irece_search.place(held_out(studio), HEADS)
    assert set(found.reads) <= {1, 2} and found.reads
    assert found.mask in irece_search.MASKS
    every: Any = [each for each in tried if isinstance(each, dict)]
    votes, with_reads = every[0], every[len(found.reads)]
    assert votes["reads"] == [] and [tuple(r) for r in with_reads["reads"]] == [
        HEADS[i] for i in found.reads
    ]
    # it is gone from most images, and less is written over for it than by the votes alone
    assert with_reads["gone"] > 0.8 and with_reads["area"] < votes["area"]
    assert all(each["votes"] == irece_search.VOTES for each in every if not each["reads"])


def test_where_no_layer_can_be_read_the_votes_find_the_place(studio: Studio) -> None:
    held = held_out(studio, torch.zeros(24, 0, SIDE, SIDE))
    # where hardly anything is found it would seem best to look nowhere
    for threshold in (0.0, 99.0):
        found, _ = irece_search.place(replace(held, threshold=threshold), [])
        assert found.reads == () and found.votes > 0


def test_members_judge_what_they_were_not_taught(studio: Studio) -> None:
    held = held_out(studio)
    blind = replace(held.members[1], biases=(*held.members[1].biases[:-1], torch.tensor([[-99.0]])))
    half = replace(held, members=[held.members[0], blind])
    assert not held.gone(held.latents).any()
    assert half.gone(held.latents).tolist() == [i % 2 == 1 for i in range(24)]
    assert half.others(0) == [blind] and half.shown == [0, 1]


def test_settings_are_as_an_artifact_has_them() -> None:
    told = Settings((3,), 1.0, 0.3).as_dict()
    assert "reads" not in told and told["mask"] == 0.3 and told["replacement"] == "background"
