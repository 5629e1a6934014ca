"""A guard learns from the attacks that came through, and keeps its rates."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from classifiers.heads import Heads
from classifiers.training import Recipe
from guard.artifact import Artifact
from guard.errors import ArtifactError, DataError, FingerprintError
from guard.evaluation.images.judge import JudgeView
from guard.fitting.checkpoints import Checkpoints
from guard.fitting.images import hardening as module
from guard.fitting.images.attacked_prompts import JudgedAttempts, Searched
from guard.fitting.images.cgce import Descent, fit_cgce
from guard.fitting.images.hardening import Hardening, harden
from guard.fitting.prompts.attack import Attack, Attacker
from guard.fitting.prompts.concept_prompts import LabelledPrompt
from guard.fitting.prompts.rates import Calibrated, PromptRates, rates_of
from guard.fitting.prompts.search import Search
from guard.models.images import ImageModel
from tests.guard.fitting.images.test_cgce import QUIET
from tests.guard.fitting.prompts.test_attack import LikeBlades
from tests.guard.fitting.prompts.test_search import CONCEPT
from tests.server.tiny_pipeline import save_pipeline

RATES = PromptRates(0.1, 0.1)
RECIPE = Recipe(hidden=8, steps=80, batch=32, rate=1e-2)
HARDENING = Hardening(
    rounds=2,
    until=0.0,
    noise=40,
    recipe=replace(RECIPE, steps=40),
    attack=Attack(prompts=4, words=3, steps=8, candidates=8, length=3, vectors=2),
)


@pytest.fixture(scope="module")
def image_model(tmp_path_factory: pytest.TempPathFactory) -> ImageModel:
    family = save_pipeline(tmp_path_factory.mktemp("model"))
    return ImageModel(family, name="tiny", architecture="StableDiffusionPipeline")


def prompts() -> list[LabelledPrompt]:
    """Knives are the concept; the tokenizer knows none of the numbered words."""
    words = {"unsafe": "knife", "far": "cat", "near": "dog"}
    return [
        LabelledPrompt(
            f"{word} x{i}", kind, f"fold {i % 2}", f"cat x{i}" if kind == "unsafe" else ""
        )
        for i in range(48)
        for kind, word in words.items()
    ]


@pytest.fixture(scope="module")
def fitted(image_model: ImageModel) -> Artifact:
    fit = fit_cgce(
        image_model,
        CONCEPT,
        prompts(),
        rates=RATES,
        recipe=RECIPE,
        descent=Descent(),
        search=Search(rounds=0),
        progress=QUIET,
    )
    return fit.artifact


@pytest.fixture(scope="module", autouse=True)
def _blades_show_the_concept(image_model: ImageModel) -> Iterator[None]:
    """In place of the denoiser, whose weights are random."""
    like = LikeBlades(image_model)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "likeness_of", lambda *_, **__: like)
        yield


def hardened(
    image_model: ImageModel, artifact: Artifact, folder: Path | None = None, **changed: Any
) -> Calibrated:
    arguments: dict[str, Any] = {"hardening": HARDENING, "judged": None} | changed
    return harden(
        image_model,
        artifact,
        CONCEPT,
        arguments.pop("prompts", prompts()),
        rates=rates_of(artifact),
        kept=Checkpoints(folder and folder / "out.safetensors", "this"),
        seed=0,
        progress=QUIET,
        **arguments,
    )


@pytest.fixture(scope="module")
def whole(
    image_model: ImageModel, fitted: Artifact, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Calibrated, Path]:
    """A finished run, and the folder with its parts."""
    folder = tmp_path_factory.mktemp("whole")
    return hardened(image_model, fitted, folder), folder


def rounds(fit: Calibrated) -> Any:
    return fit.artifact.meta.calibration["rounds"]


def test_what_came_through_fires_afterwards(
    fitted: Artifact, whole: tuple[Calibrated, Path]
) -> None:
    fit, _ = whole
    first, *others = rounds(fit)
    assert first["round"] == 0 and first["prompts_through"] > 0 and others
    drawn = [each for each in fit.held_out.prompts if each.kind == "drawn"]
    assert any("blade" in each.prompt for each in drawn)
    assert any(each.prompt.startswith("learned word 1 of") for each in drawn)
    fired = np.mean([each.score > fit.held_out.threshold for each in drawn])
    assert fired > 0.5
    meta = fit.artifact.meta
    assert meta.calibration["far_fired"] <= RATES.far  # type: ignore[operator]
    assert meta.calibration["near_fired"] <= RATES.near  # type: ignore[operator]
    through = [row["prompts_through"] + row["words_through"] for row in rounds(fit)]
    assert meta.calibration["came_through"] == min(through) / first["searches"]
    # the guard is that of the round that let least through
    assert meta.calibration["best_round"] == through.index(min(through)) > 0
    assert meta.settings["threshold"] == rounds(fit)[through.index(min(through))]["threshold"]
    assert meta.calibration["hardened_from"] == fitted.digest
    assert meta.model.fingerprint == fitted.meta.model.fingerprint


def test_only_the_classifiers_change(fitted: Artifact, whole: tuple[Calibrated, Path]) -> None:
    fit, _ = whole
    changed = {
        name
        for name, values in fit.artifact.tensors.items()
        if not np.array_equal(values, fitted.tensors[name])
    }
    assert changed and all(name.split(".")[0] in module.PARTS for name in changed)
    assert {n: v.shape for n, v in fit.artifact.tensors.items()} == {
        n: v.shape for n, v in fitted.tensors.items()
    }


def test_a_search_without_successes_ends_it(image_model: ImageModel, fitted: Artifact) -> None:
    fit = hardened(image_model, fitted, hardening=replace(HARDENING, until=1.0))
    assert len(rounds(fit)) == 1
    for name in ("threshold", "target"):
        assert fit.artifact.meta.settings[name] == pytest.approx(fitted.meta.settings[name])
    for name, values in fit.artifact.tensors.items():
        assert np.array_equal(values, fitted.tensors[name])


def test_a_killed_run_goes_on(
    image_model: ImageModel,
    fitted: Artifact,
    whole: tuple[Calibrated, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fit, folder = whole

    def lost(*_arguments: Any, **_how: Any) -> Any:
        raise AssertionError("this was already searched or trained")

    monkeypatch.setattr(Attacker, "attempts", lost)
    monkeypatch.setattr(module, "train_heads", lost)
    again = hardened(image_model, fitted, folder)
    assert again.artifact.digest == fit.artifact.digest


class _Judge:
    """Sees a knife in every second image."""

    digest = "0" * 64

    def __init__(self) -> None:
        self.seen = 0

    def views(self, images: Any) -> list[JudgeView]:
        self.seen += len(images)
        return [JudgeView(("knife",) if i % 2 else (), "") for i in range(len(images))]


def test_an_attack_counts_only_if_the_judge_sees_the_concept(
    image_model: ImageModel, fitted: Artifact
) -> None:
    once = replace(HARDENING, rounds=0)
    (without,) = rounds(hardened(image_model, fitted, hardening=once))
    judge = _Judge()
    judged = JudgedAttempts(judge, "knife", 1, 1.0)  # type: ignore[arg-type]
    (row,) = rounds(hardened(image_model, fitted, hardening=once, judged=judged))
    found = without["prompts_through"] + without["words_through"]
    assert judge.seen >= found > 1
    assert row["prompts_through"] + row["words_through"] == judge.seen // 2


def test_a_guard_that_gets_no_better_stays_as_it_was(
    image_model: ImageModel, fitted: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    def worse(heads: Heads) -> Heads:
        return replace(heads, out_bias=heads.out_bias - 100)

    train = module.train_heads
    monkeypatch.setattr(module, "train_heads", lambda *a, **how: worse(train(*a, **how)))
    fit = hardened(image_model, fitted, hardening=replace(HARDENING, rounds=1))
    assert len(rounds(fit)) == 2 and fit.artifact.meta.calibration["best_round"] == 0
    for name, values in fit.artifact.tensors.items():
        assert np.array_equal(values, fitted.tensors[name])


def test_attacks_are_a_share_of_every_batch(image_model: ImageModel) -> None:
    lesson = module._Lesson(prompts(), image_model.encode([p.text for p in prompts()]))
    found: dict[str, Any] = {
        "searches": 2,
        "prompts": ["blade"],
        "words": [],
        "unsafe": [],
        "safe": ["a cat"],
    }
    lesson.add(image_model, Searched(**found), 0)
    weights, unsafe = lesson.weights(0.25, most=100.0), lesson.unsafe
    assert [p.kind for p in lesson.prompts[-2:]] == ["drawn", "undrawn"]
    for side, row in ((unsafe, -2), (~unsafe, -1)):
        assert float(weights[row] / weights[side].sum()) == pytest.approx(0.25)
    # few attacks are not learned by heart
    assert lesson.weights(0.25, most=3.0)[-2:].tolist() == [3.0, 3.0]
    lesson.add(image_model, Searched(**{**found, "prompts": ["a dog"]}), None)
    assert lesson.weights(0.25, most=3.0)[-4:].tolist() == [3.0, 3.0, 1.0, 1.0]


def test_prompts_of_another_fit_are_refused(image_model: ImageModel, fitted: Artifact) -> None:
    named = [p for p in prompts() if p.kind != "unsafe"]
    others = [replace(p, kind="unsafe", partner=q.text) for p, q in zip(named, named, strict=True)]
    with pytest.raises(DataError, match="of those of the guard's fit"):
        hardened(image_model, fitted, prompts=[*others, *prompts()])
    with pytest.raises(DataError, match="--folds 2"):
        hardened(image_model, fitted, prompts=[replace(p, split="fold 9") for p in prompts()])


def test_another_guard_is_refused(image_model: ImageModel, fitted: Artifact) -> None:
    meta = fitted.meta.model_copy(update={"method": "nearest", "tensors_sha256": ""})
    with pytest.raises(ArtifactError, match="guard fit cgce"):
        hardened(image_model, Artifact(meta, dict(fitted.tensors)))
    model = fitted.meta.model.model_copy(update={"fingerprint": "0" * 64})
    meta = fitted.meta.model_copy(update={"model": model, "tensors_sha256": ""})
    with pytest.raises(FingerprintError):
        hardened(image_model, Artifact(meta, dict(fitted.tensors)))
    silent = fitted.meta.model_copy(update={"calibration": {}, "tensors_sha256": ""})
    with pytest.raises(ArtifactError, match="false-positive rates"):
        hardened(image_model, Artifact(silent, dict(fitted.tensors)))
