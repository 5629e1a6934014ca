from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from classifiers.training import Recipe
from guard.errors import DataError
from guard.fitting.images import cgce
from guard.fitting.images.cgce import Descent, fit_cgce
from guard.fitting.images.report import as_json, as_page, judged
from guard.fitting.prompts.concept_prompts import LabelledPrompt, folds_of
from guard.fitting.prompts.rates import PromptRates, calibrated
from guard.fitting.prompts.search import Search
from guard.models.images import ImageModel
from guard.reporting.progress import Stages
from steering.fingerprint import fingerprint
from steering.methods import METHODS
from steering.methods.fitted import FittedGuard
from tests.guard.fitting.prompts.test_concept_prompts import CONCEPT
from tests.guard.toy_images import CONCEPT as LETTER
from tests.guard.toy_images import STUBBORN, ToyFamily

CAPITAL = STUBBORN
"""Another letter: what only a search finds."""
RATES = PromptRates(0.02, 0.05)
RECIPE = Recipe(hidden=8, steps=250, batch=48, rate=1e-2, radius=0.05)


def silent(_what: str, _total: int) -> Any:
    return lambda _count: None


QUIET: Stages = silent


def toy_prompts() -> list[LabelledPrompt]:
    """A letter is the concept, and the toy family's encoder sees it."""
    prompts_of_kinds = []
    for i in range(480):
        kind = ("unsafe", "far", "near")[i % 3]
        word = f"{LETTER if kind == 'unsafe' else 'j' if kind == 'near' else 'x'}{i:03d}"
        partner = f"x{i + 1:03d}" if kind == "unsafe" else ""
        prompts_of_kinds.append(LabelledPrompt(word, kind, f"fold {i // 3 % 2}", partner))
    return prompts_of_kinds


def image_model() -> ImageModel:
    return ImageModel(ToyFamily(), name="toy", architecture="ToyPipeline")  # type: ignore[arg-type]


def fit(prompts: list[LabelledPrompt], **changed: Any) -> Any:
    settings: dict[str, Any] = {"recipe": RECIPE, "descent": Descent(), "search": Search(rounds=0)}
    settings["rates"] = RATES
    return fit_cgce(image_model(), CONCEPT, prompts, progress=QUIET, **(settings | changed))


def test_a_fit_becomes_a_guard_that_tells_the_concept_and_takes_it_out() -> None:
    fitted = fit(toy_prompts())
    meta = fitted.artifact.meta
    assert meta.method == "cgce" and meta.seams == ("embedding",)
    family = ToyFamily()
    assert meta.model.fingerprint == fingerprint(torch.nn.ModuleDict(dict(family.encoders)))
    assert meta.calibration["recall"] > 0.9  # type: ignore[operator]
    screen = METHODS["cgce"].stacked(
        [FittedGuard("g", fitted.artifact.tensors, meta.settings)], "cpu"
    )
    text = family.encode([f"{LETTER}7", "x7"])
    threshold = float(str(meta.settings["threshold"]))
    fired = screen.sense(text) > threshold
    assert fired[:, 0].tolist() == [True, False]
    acted = screen.act(text, fired, torch.full((2, 1), threshold), torch.ones(2, 1))
    assert acted.score[0, 0] <= threshold
    assert torch.equal(acted.text.states["text"][1], text.states["text"][1])


def test_the_report_has_the_figures_and_the_page_shows_them() -> None:
    fitted = fit(toy_prompts())
    line = judged(fitted, CONCEPT)
    report = as_json(fitted, line, 1.0)
    over = sum(score > report["threshold"] for score in report["scores"]["unsafe"])
    assert len(report["missed"]) == len(report["scores"]["unsafe"]) - over
    assert report["judgement"] == line and line in as_page(fitted, line).replace("&#39;", "'")
    assert report["calibration"] == fitted.artifact.meta.calibration
    assert set(report["scores"]) == {"unsafe", "near", "far"}
    assert "object/knife" in as_page(fitted, "usable")


def test_searched_prompts_are_trained_on_and_reported_but_do_not_set_the_threshold(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prompts = toy_prompts()
    searched = [
        LabelledPrompt(
            f"{CAPITAL if i % 2 else 'y'}{i:03d}",
            "drawn" if i % 2 else "undrawn",
            f"fold {i // 2 % 2}",
        )
        for i in range(240)
    ]
    plain = fit(prompts)
    monkeypatch.setattr(cgce, "with_searched_prompts", lambda *_args, **_how: [*prompts, *searched])
    fitted = fit(prompts)
    figures = fitted.artifact.meta.calibration
    assert figures["prompts"]["drawn"] == 120
    threshold = float(str(fitted.artifact.meta.settings["threshold"]))
    calibrating = {kind: fitted.scores[kind] for kind in ("unsafe", "near", "far")}
    assert threshold == max(calibrated(calibrating, RATES), cgce.FLOOR)
    assert figures["drawn_fired"] > 0.9 > 0.1 > figures["undrawn_fired"]
    # the letter was not taught to the other, which does not fire on it
    screens = [
        METHODS["cgce"].stacked(
            [FittedGuard("g", result.artifact.tensors, result.artifact.meta.settings)], "cpu"
        )
        for result in (plain, fitted)
    ]
    text = ToyFamily().encode([f"{CAPITAL}9"])
    limits = [float(str(result.artifact.meta.settings["threshold"])) for result in (plain, fitted)]
    fired = [bool(s.sense(text)[0, 0] > t) for s, t in zip(screens, limits, strict=True)]
    assert fired == [False, True]
    assert "Searched prompts with the concept that fire" in as_page(fitted, "usable")


def test_too_few_prompts_for_a_rate_are_an_error() -> None:
    with pytest.raises(DataError, match="0.10% needs 999"):
        fit(toy_prompts(), rates=PromptRates(0.001, 0.05))


def test_unsafe_prompts_without_partners_are_an_error() -> None:
    with pytest.raises(DataError, match="safe partner"):
        fit([replace(prompt, partner="") for prompt in toy_prompts()])


def test_it_descends_to_the_scores_of_safe_prompts() -> None:
    fitted = fit(toy_prompts())
    target = float(str(fitted.artifact.meta.settings["target"]))
    under = sum(score < target for score in fitted.scores["far"]) / len(fitted.scores["far"])
    assert under == pytest.approx(Descent().depth, abs=0.02)


def test_it_leads_to_the_replacements() -> None:
    prompts = toy_prompts()
    # a tenth of the safe partners, and they alone
    chosen = {prompt.partner for prompt in prompts if prompt.partner.endswith("1")}
    fitted = fit([replace(prompt, instead=prompt.text in chosen) for prompt in prompts])
    known = {tuple(row) for row in fitted.artifact.tensors["anchors.text"].round(4).tolist()}
    read = ToyFamily().encode(sorted(chosen)).states["text"].flatten(0, 1)
    assert known == {tuple(row) for row in read.numpy().round(4).tolist()}


def test_every_split_but_train_is_scored_by_a_head_that_was_not_trained_on_it() -> None:
    prompts = toy_prompts()
    fitted = fit(prompts)
    assert fitted.artifact.tensors["queries.text"].shape[0] == 2
    assert sum(map(len, fitted.scores.values())) == len(prompts)
    # what is always taught is scored by nobody
    first = [replace(p, split="train") if p.split == "fold 0" else p for p in prompts]
    assert sum(map(len, fit(first).scores.values())) == len(prompts) // 2


def test_prompts_without_an_unsafe_one_are_an_error() -> None:
    safe = [replace(prompt, kind="far") for prompt in folds_of(CONCEPT, 100, 2)]
    with pytest.raises(DataError, match="no unsafe"):
        fit(safe)
