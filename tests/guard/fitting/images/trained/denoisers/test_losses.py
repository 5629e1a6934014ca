"""Each published loss against its formula, computed with the changed weights in the network itself.

The losses run a bare network with hooks that change it; the tests run two networks, of which one
has the change in its weights.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from guard.evaluation.m_erasure.denoising import bare
from guard.fitting.images.imported import base_of
from guard.fitting.images.trained.denoisers import co_erasing, doco, spm
from guard.fitting.images.trained.denoisers.all_but_one import AllButOne
from guard.fitting.images.trained.denoisers.ant import Ant
from guard.fitting.images.trained.denoisers.co_erasing import CoErasing
from guard.fitting.images.trained.denoisers.doco import DoCo
from guard.fitting.images.trained.denoisers.fit import DenoiserEraser
from guard.fitting.images.trained.denoisers.layers import chosen, layers_of
from guard.fitting.images.trained.denoisers.lesson import DenoiserLesson
from guard.fitting.images.trained.denoisers.picture_tokens import PictureTokens, refined_by
from guard.fitting.images.trained.denoisers.spm import Spm, cosines, far_from, random_anchors
from guard.fitting.images.trained.denoisers.trajectories import States, Trajectories
from guard.fitting.images.trained.denoisers.trce import TrceStage2
from guard.fitting.overlays.deltas import Deltas
from guard.fitting.overlays.training import Losses, Objective
from steering.engines.diffusion.families import family_of
from steering.images.conditioning import Conditioning
from tests.guard.fitting.images.trained.denoisers.erasers import (
    CONCEPT,
    IMAGES,
    TRAINING,
    WAYS,
    silent,
    tiny_model,
)

PROMPTS = ["a knife", "knife on the table"]
EMPTY = ["", ""]
CATS = ["a cat", "a red table"]


@dataclass(frozen=True)
class Networks:
    """The lesson, and what two networks predict: `bare` and `edited(at, texts)`."""

    lesson: DenoiserLesson
    merged: Any

    def bare(self, at: Any, texts: Sequence[str] | Conditioning) -> Tensor:
        return _predicted(self.lesson.family, at, texts)

    def edited(self, at: Any, texts: Sequence[str] | Conditioning) -> Tensor:
        return _predicted(self.merged, at, texts)


@torch.no_grad()
def _predicted(family: Any, at: Any, texts: Sequence[str] | Conditioning) -> Tensor:
    text = texts if isinstance(texts, Conditioning) else family.encode(texts)
    return bare(family)(at.inputs, at.timesteps, text)


def networks(name: str, eraser: DenoiserEraser) -> Networks:
    """Factors that are not zero, in hooks on the one side and in weights on the other."""
    model = tiny_model(name)
    base = base_of(model.family)
    deltas = Deltas(base, chosen(layers_of(model.family), eraser.kinds), 2)
    generator = torch.Generator().manual_seed(5)
    merged = family_of(copy.deepcopy(model.family.pipeline))
    with torch.no_grad():
        for parameter in deltas.parameters:
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
        factors = deltas.factors()
        for layer, read in factors.reads.items():
            weight = merged.denoiser.get_submodule(layer).weight
            weight += (factors.writes[layer].T @ read.flatten(1)).reshape(weight.shape)
    prompts = PROMPTS, CATS
    generator = torch.Generator().manual_seed(0)
    lesson = DenoiserLesson(model, base, deltas, CONCEPT, TRAINING, *prompts, generator, silent)
    return Networks(lesson, merged)


def losses(of: Networks, eraser: DenoiserEraser, update: int = 0) -> tuple[Losses, Objective]:
    objective = eraser.objective(of.lesson)
    return objective.losses(update), objective


def matches(loss: Tensor | None, expected: Tensor | float) -> None:
    assert loss is not None
    torch.testing.assert_close(float(loss.detach()), float(expected), rtol=2e-4, atol=1e-7)


def mean_square(difference: Tensor) -> Tensor:
    return (difference**2).mean()


@pytest.fixture(params=["emoji", "stable diffusion"])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, float, States]]:
    """Every draw of states: its window of noise levels, and the states. Their prompts are fixed."""
    draws: list[tuple[float, float, States]] = []
    draw = Trajectories.draw

    def recorded(
        self: Trajectories, update: int, rows: int, low: float = 0.0, high: float = torch.inf
    ) -> tuple[list[str], States]:
        prompts, states = draw(self, update, rows, low, high)
        draws.append((low, high, states))
        return prompts, states

    monkeypatch.setattr(Trajectories, "draw", recorded)
    return draws


Drawn = list[tuple[float, float, States]]


@pytest.mark.parametrize("surrogate", ["", "a banana"])
def test_spm(name: str, surrogate: str, drawn: Drawn, monkeypatch: pytest.MonkeyPatch) -> None:
    eraser = Spm(surrogate, 0.5, keep=1000.0, batch=2, trajectories=WAYS)
    of = networks(name, eraser)
    anchors = of.lesson.encode(CATS)
    monkeypatch.setattr(spm, "far_from", lambda *_: anchors)
    got, _ = losses(of, eraser)
    ((_, _, at),) = drawn
    prompts = at.texts(CONCEPT.phrases.train)
    instead, concept = of.bare(at, [surrogate] * 2), of.bare(at, prompts)
    target = instead - 0.5 * (concept - instead)
    matches(got.erase, mean_square(of.edited(at, prompts) - target))
    matches(got.keep, 1000.0 * mean_square(of.edited(at, anchors) - of.bare(at, anchors)))


def test_ant(name: str, drawn: Drawn) -> None:
    eraser = Ant(2.0, 3.0, 0.5, boundary=2.0, batch=2, trajectories=WAYS)
    of = networks(name, eraser)
    got, _ = losses(of, eraser)
    (low, high, late), (early_low, _, early) = drawn
    assert (low, high, early_low) == (0.0, 2.0, 2.0)
    assert bool((late.level <= 2.0).all()) and bool((early.level >= 2.0).all())

    def terms(at: States, sign: float) -> tuple[Tensor, Tensor]:
        prompts = at.texts(CONCEPT.phrases.train)
        u, c = of.bare(at, EMPTY), of.bare(at, prompts)
        target = u + sign * 2.0 * (c - u)
        return (
            mean_square(of.edited(at, prompts) - target),
            mean_square(of.edited(at, EMPTY) - u),
        )

    erase, plain = terms(late, -1.0)
    stays, early_plain = terms(early, 1.0)
    matches(got.erase, erase)
    matches(got.keep, 0.5 * plain + 3.0 * (stays + 0.5 * early_plain))


def test_all_but_one(name: str, drawn: Drawn) -> None:
    eraser = AllButOne("a banana", 4.0, batch=2, trajectories=WAYS)
    of = networks(name, eraser)
    got, _ = losses(of, eraser)
    ((_, _, at),) = drawn
    prompts = [p for phrase in CONCEPT.phrases.train for p in _templates(phrase)]
    asked = at.texts(prompts)
    twins = [
        text.replace("knife on the table", "a banana").replace("a knife", "a banana")
        for text in asked
    ]
    wanted = of.bare(at, twins) - of.bare(at, EMPTY)
    matches(got.erase, mean_square(of.edited(at, asked) - of.edited(at, EMPTY) - wanted))
    matches(got.keep, 4.0 * mean_square(of.edited(at, EMPTY) - of.bare(at, EMPTY)))


@pytest.mark.parametrize("margin", [0.01, 50.0])
def test_trce_stage_2(name: str, margin: float, drawn: Drawn) -> None:
    eraser = TrceStage2("a banana", 15.0, margin, 100.0, low=1.5, batch=2, trajectories=WAYS)
    of = networks(name, eraser)
    got, _ = losses(of, eraser)
    (low, _, at), (_, _, free) = drawn
    assert low == 1.5 and bool((at.level >= 1.5).all())
    asked = at.texts([p for phrase in CONCEPT.phrases.train for p in _templates(phrase)])
    twins = [
        text.replace("knife on the table", "a banana").replace("a knife", "a banana")
        for text in asked
    ]
    u, safe, harmful = of.bare(at, EMPTY), of.bare(at, twins), of.bare(at, asked)
    near, far = 16.0 * safe - 15.0 * u, 16.0 * harmful - 15.0 * u
    hinges = []
    for row in range(2):
        for predicted in (of.edited(at, asked)[row], of.edited(at, EMPTY)[row]):
            gap = mean_square(predicted - near[row]) - mean_square(predicted - far[row]) + margin
            hinges.append(max(float(gap), 0.0))
    matches(got.erase, sum(hinges) / 4)
    matches(got.keep, 100.0 * mean_square(of.edited(free, EMPTY) - of.bare(free, EMPTY)))


@pytest.mark.parametrize("update", [0, 2])
def test_co_erasing(name: str, update: int, drawn: Drawn, monkeypatch: pytest.MonkeyPatch) -> None:
    """Words alone in the first half, words and pictures in the second."""
    eraser = CoErasing(1.5, batch=2, trajectories=WAYS)
    of = networks(name, eraser)
    width = of.lesson.encode(["a"]).states["text"].shape[-1]
    tokens = torch.randn(3, width, generator=torch.Generator().manual_seed(1))
    monkeypatch.setattr(co_erasing, "learned_tokens", lambda *_: PictureTokens({"text": tokens}))
    got, _ = losses(of, eraser, update)
    ((_, _, at),) = drawn
    text = of.lesson.encode(at.texts(CONCEPT.phrases.train))
    if update:
        states, mask = text.states["text"], text.masks["text"]
        refined = torch.stack(
            [
                torch.softmax(tokens @ rows[real].T / width**0.5, -1) @ rows[real]
                for rows, real in zip(states, mask, strict=True)
            ]
        )
        seen = torch.cat([mask, torch.ones(2, 3, dtype=torch.bool)], 1)
        text = Conditioning({"text": torch.cat([states, refined], 1)}, {"text": seen})
    u, c = of.bare(at, EMPTY), of.bare(at, text)
    matches(got.erase, mean_square(of.edited(at, text) - (u - 1.5 * (c - u))))
    assert got.keep is None


def test_doco(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    views: list[Any] = []
    draw = doco.DenoiserLesson.images

    def images(self: DenoiserLesson, *arguments: Any) -> Any:
        made = draw(self, *arguments)
        drawn = made.views

        def recorded(*of: Any) -> Any:
            views.append(drawn(*of))
            return views[-1]

        made.views = recorded  # type: ignore[method-assign]
        return made

    monkeypatch.setattr(DenoiserLesson, "images", images)
    eraser = DoCo("a banana", 2.0, warmup=1, batch=2, images=IMAGES)
    of = networks(name, eraser)
    asked: list[Any] = []
    edited = DenoiserLesson.edited

    def recorded_texts(self: DenoiserLesson, at: Any, *texts: Any) -> Any:
        asked.append(texts)
        return edited(self, at, *texts)

    monkeypatch.setattr(DenoiserLesson, "edited", recorded_texts)
    got, objective = losses(of, eraser)
    anchors, at = views[-1]
    assert len(views) == 2  # the warm-up, and the update
    ((_, targets),) = asked
    assert all("banana" in anchor for anchor in anchors)
    for anchor, target in zip(anchors, targets, strict=True):
        assert "knife" in target
        assert (
            target.replace("knife on the table", "a banana").replace("a knife", "a banana")
            == anchor
        )
    # of this batch the discriminator has been updated already
    discriminator: Any = objective.parts["discriminator"]
    clean = at.sample * at.noisy + at.output * of.edited(at, targets)
    scheduler = of.lesson.family.scheduler
    alpha = scheduler.alphas_cumprod[at.timesteps.long()].view(-1, 1, 1, 1)
    if scheduler.config.prediction_type == "epsilon":
        noise = of.edited(at, targets)
        by_hand = (at.noisy - (1 - alpha).sqrt() * noise) / alpha.sqrt()
        torch.testing.assert_close(clean, by_hand, rtol=1e-3, atol=1e-3)
    with torch.no_grad():
        logits = discriminator._network(clean)
    matches(got.erase, torch.log1p(logits.exp()).mean())
    matches(got.keep, 2.0 * mean_square(of.edited(at, anchors) - at.truth))


# -- what the losses are computed on ---------------------------------------------------------------


def test_trajectories_are_those_of_images_and_of_the_changed_model(name: str) -> None:
    """The first states are noise, alike for both models; the last ones are not."""
    eraser = Spm(trajectories=replace(WAYS, refresh=100))
    of = networks(name, eraser)
    bare_states, edited_states = (
        Trajectories(_reseeded(of.lesson), PROMPTS, WAYS, edited=edited) for edited in (False, True)
    )
    states = []
    for trajectories in (bare_states, edited_states):
        trajectories.draw(0, 1)
        states.append(States(**{k: v for k, v in trajectories.state().items() if k != "until"}))
    first, second = states
    assert len(first.timesteps) == WAYS.count * WAYS.steps
    assert torch.equal(first.inputs[: WAYS.count], second.inputs[: WAYS.count])
    assert not torch.equal(first.inputs[-WAYS.count :], second.inputs[-WAYS.count :])
    assert bool((first.level[: -WAYS.count] > first.level[WAYS.count :]).all())
    # a step of the sampler, from the predictions by themselves
    family = of.lesson.family
    at = first.select(torch.arange(WAYS.count))
    prompts = at.texts(PROMPTS)
    unconditional, conditional = of.bare(at, EMPTY), of.bare(at, prompts)
    guided = unconditional + 2.0 * (conditional - unconditional)
    scheduler = copy.deepcopy(family.scheduler)
    scheduler.set_timesteps(WAYS.steps)
    stepped = scheduler.step(guided, scheduler.timesteps[0], at.inputs, return_dict=False)[0]
    torch.testing.assert_close(
        first.inputs[WAYS.count : 2 * WAYS.count], stepped, rtol=1e-3, atol=1e-3
    )


def _reseeded(lesson: DenoiserLesson) -> DenoiserLesson:
    return replace(lesson, generator=torch.Generator().manual_seed(4))


def test_new_images_are_begun_after_so_many_updates() -> None:
    of = networks("emoji", Spm())
    ways = Trajectories(of.lesson, PROMPTS, replace(WAYS, refresh=3), edited=True)
    found = []
    for update in range(5):
        ways.draw(update, 1)
        found.append(ways.state()["inputs"])
    assert found[0] is found[2] and found[3] is not found[2] and found[4] is found[3]


def test_random_anchors_are_about_as_long_as_the_concepts_states() -> None:
    lesson = networks("stable diffusion", Spm()).lesson
    concept = lesson.encode(["a knife"])
    anchors = random_anchors(concept, 200, torch.Generator().manual_seed(0))
    assert anchors.rows == 200
    lengths = anchors.states["text"].flatten(1).norm(dim=1)
    share = lengths / concept.states["text"].flatten(1).norm()
    assert 0.8 <= float(share.min()) < 0.85 and 1.15 < float(share.max()) <= 1.2
    assert float(cosines(anchors, concept).abs().mean()) < 0.1


def test_anchors_are_drawn_in_proportion_to_one_minus_the_cosine() -> None:
    def text(*rows: tuple[float, float]) -> Conditioning:
        states = torch.tensor(rows)[:, None]
        return Conditioning({"text": states}, {"text": torch.ones(len(rows), 1).bool()})

    concept = text((2.0, 0.0)).expand(3000)
    candidates = text((5.0, 0.0), (0.0, 3.0), (-1.0, 0.0))
    drawn = far_from(concept, candidates, torch.Generator().manual_seed(0)).states["text"][:, 0]
    counts = [int((drawn == of[0]).all(1).sum()) for of in candidates.states["text"]]
    assert counts[0] == 0 and sum(counts) == 3000
    assert abs(counts[1] - 1000) < 100  # weights 0, 1 and 2


@pytest.mark.parametrize("anchors", ["prompts", "random"])
def test_both_kinds_of_anchors_keep_what_the_bare_model_does(anchors: Any) -> None:
    eraser = Spm(anchors=anchors, batch=2, trajectories=WAYS)
    got, _ = losses(networks("stable diffusion", eraser), eraser)
    assert got.keep is not None and 0.0 < float(got.keep) < torch.inf


def test_tokens_are_refined_by_the_real_states_alone() -> None:
    tokens = torch.eye(2)
    states = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [9.0, 9.0]]])
    mask = torch.tensor([[True, True, False]])
    e = torch.tensor(2.0**-0.5).exp()
    near, far = float(e / (1 + e)), float(1 / (1 + e))
    expected = torch.tensor([[[near, far], [far, near]]])
    torch.testing.assert_close(refined_by(tokens, states, mask), expected)


def _templates(phrase: str) -> list[str]:
    """The prompts that a phrase is put into, in the order of the file of twins."""
    from guard.fitting.prompts.twins import TEMPLATES

    return [template.format(phrase) for template in TEMPLATES]
