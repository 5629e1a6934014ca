"""The white-box attack on guards that inspect images: its images and its losses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.attacks import denoiser
from benchmarks.attacks.denoiser import DenoisingLoss, NoDefense
from benchmarks.attacks.generating import EmbeddingGenerator
from benchmarks.attacks.target import Target
from benchmarks.attacks.white_box import GUIDANCE, SEEDS, STEPS, GuardDefense, OutputGuardLoss
from guard.config.policy_schema import PolicyConfig
from guard.config.schema import Config, GuardConfig
from guard.data.prompts import ImagePrompt, read_rows
from guard.plans.images import ImagePlan, ImagePlans
from steering.engines.diffusion.engine import DiffusionEngine, ImageStart
from steering.engines.diffusion.families import Family
from steering.images.conditioning import Conditioning
from steering.images.stacks import ImageStacks
from tests.benchmarks.attacks.commands import run_white_box
from tests.benchmarks.attacks.tiny import pipeline
from tests.guard.toy_images import save_drawn_latents
from tests.server.tiny_pipeline import save_eraser, save_pipeline

PROMPTS = ["a knife", "a cat", "a dog"]


class FakeInspection(NoDefense):
    """The image loss is an offset and the number of the row; records the inspected rows."""

    def __init__(self, offset: float = 10.0) -> None:
        self.offset, self.rows = offset, list[Conditioning]()

    def image_loss(self, text: Conditioning) -> Tensor:
        self.rows.append(text)
        return self.offset + torch.arange(float(text.rows))


@pytest.fixture(scope="module")
def target() -> Target:
    return Target(pipeline())


def losses(target: Target, defense: Any, candidates: Tensor) -> Tensor:
    latents = torch.randn(4, 8, 16, 16, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(0)
    objective = DenoisingLoss(
        target, latents, views=2, prompt=None, generator=generator, defense=defense
    )
    objective.renew(0)
    return objective.losses(candidates)


def candidates(target: Target) -> Tensor:
    texts = ("a cat", "a dog", "a car", "a pig", "a rose", "a tree", "a bus", "a knife")
    return torch.tensor([target.content(text)[:2] for text in texts])


def test_only_the_best_and_the_current_sequence_get_images(target: Target) -> None:
    rows, inspection = candidates(target), FakeInspection()
    plain = losses(target, NoDefense(), rows)
    result = losses(target, inspection, rows)
    best = plain[:-1].topk(denoiser._GENERATED, largest=False).indices.tolist()
    inspected = [*best, len(rows) - 1]
    (text,) = inspection.rows
    assert torch.equal(text.states["text"], target.encode(rows).states["text"][inspected])
    # the image loss of a row is added to that row
    assert result[inspected].tolist() == pytest.approx(
        [float(plain[row]) + 10.0 + number for number, row in enumerate(inspected)]
    )
    others = sorted(set(range(len(rows))) - set(inspected))
    assert others and result[others].isinf().all()


def test_without_inspection_every_candidate_keeps_its_error(target: Target) -> None:
    assert losses(target, NoDefense(), candidates(target)).isfinite().all()


@pytest.mark.parametrize("count", [1, 3])
def test_few_candidates_all_get_images(target: Target, count: int) -> None:
    rows, inspection = candidates(target)[:count], FakeInspection()
    result = losses(target, inspection, rows)
    assert len(result) == count == inspection.rows[0].rows and result.isfinite().all()


def test_a_prompt_that_cannot_be_typed_keeps_an_infinite_loss(target: Target) -> None:
    rows = candidates(target)
    piece = target.tokenizer.convert_tokens_to_ids("##q")
    rows[2] = torch.tensor([piece, rows[2, 0]])
    assert losses(target, FakeInspection(offset=-1e3), rows)[2].isinf()


# -- a classifier that the attacker knows --------------------------------------------------------


@pytest.fixture(scope="module")
def tiny_pipeline(tmp_path_factory: pytest.TempPathFactory) -> tuple[Family, Path]:
    """A tiny pipeline, and a classifier that fires on all of its images."""
    folder = tmp_path_factory.mktemp("output_guards")
    family = save_pipeline(folder / "pipeline")
    save_drawn_latents(folder / "look.safetensors", family, threshold=-50.0)
    return family, folder


def plans_of(tiny_pipeline: tuple[Family, Path], **changed: Any) -> tuple[ImagePlans, ImagePlan]:
    family, folder = tiny_pipeline
    look = GuardConfig(name="look", artifact=folder / "look.safetensors", **changed)
    config = Config(guards=(look,), policies={"p": PolicyConfig(guards=("look",))})
    plans = ImagePlans(config, family, name="tiny")
    return plans, plans["p"]


def encoded(family: Family) -> Conditioning:
    with torch.no_grad():
        return family.encode(PROMPTS)


def test_scores_are_those_of_the_engine(tiny_pipeline: tuple[Family, Path]) -> None:
    family, (plans, plan) = tiny_pipeline[0], plans_of(tiny_pipeline)
    with torch.no_grad():
        losses = OutputGuardLoss(plans, plan, family, 2).of_images(encoded(family))
    first = 2000  # each search has seeds of its own
    engine = DiffusionEngine(family, ImageStacks(output=plans.stacks.output), capacity=6)
    engine.start(
        [
            ImageStart(prompt, seed=seed, steps=STEPS, guidance=GUIDANCE, guards=plan.rows())
            for prompt in PROMPTS
            for seed in range(first, first + SEEDS)
        ]
    )
    while not engine.step():
        pass
    over = [engine.readings(row)["look"].score + 50.0 for row in range(len(PROMPTS) * SEEDS)]
    expected = torch.tensor(over).view(-1, SEEDS).mean(1)
    assert bool((expected > 0).all()) and torch.allclose(losses, expected, rtol=1e-3)


def test_scores_of_guards_that_write_to_the_latents_count_too(
    tiny_pipeline: tuple[Family, Path],
) -> None:
    family, folder = tiny_pipeline
    save_eraser(folder / "eraser.safetensors", family, threshold=-50.0)
    guards = tuple(
        GuardConfig(name=name, artifact=folder / f"{name}.safetensors")
        for name in ("eraser", "look")
    )
    policies = {
        "eraser": PolicyConfig(guards=("eraser",), action="perturb"),
        "both": PolicyConfig(guards=("eraser", "look"), action="perturb"),
    }
    plans = ImagePlans(Config(guards=guards, policies=policies), family, name="tiny")
    with torch.no_grad():
        losses = {
            name: OutputGuardLoss(plans, plans[name], family, 2).of_images(encoded(family))
            for name in policies
        }
        latents = EmbeddingGenerator(family, steps=STEPS, guidance=GUIDANCE).finished(
            encoded(family), range(2000, 2000 + SEEDS)
        )
        (stack,) = plans.stacks.latents
        score, _ = stack.sense(family.unpacked(latents), [0])
    expected = (score[:, 0] + 50.0).view(-1, SEEDS).mean(1)
    assert bool((expected > 0).all()) and torch.allclose(losses["eraser"], expected, rtol=1e-4)
    # of several guards the one that is furthest above its threshold counts
    assert bool((losses["both"] >= losses["eraser"]).all())


def test_every_call_uses_other_images(tiny_pipeline: tuple[Family, Path]) -> None:
    family, (plans, plan) = tiny_pipeline[0], plans_of(tiny_pipeline)
    inspection, text = OutputGuardLoss(plans, plan, family, 0), encoded(family)
    with torch.no_grad():
        losses = [
            inspection.of_images(text),
            inspection.of_images(text),
            inspection.of_first_guess(text),
        ]
    assert not torch.allclose(losses[0], losses[1], rtol=1e-3)
    assert losses[2].shape == losses[0].shape


def test_scores_under_the_threshold_add_nothing(tiny_pipeline: tuple[Family, Path]) -> None:
    family, (plans, plan) = tiny_pipeline[0], plans_of(tiny_pipeline, threshold=1e6)
    with torch.no_grad():
        assert not OutputGuardLoss(plans, plan, family, 0).of_images(encoded(family)).any()


def test_gradients_lead_to_lower_scores(tiny_pipeline: tuple[Family, Path]) -> None:
    family, (plans, plan) = tiny_pipeline[0], plans_of(tiny_pipeline)
    text = encoded(family).select(slice(0, 1))
    states = text.states["text"].clone().requires_grad_()
    given = text.with_states({"text": states})
    loss = OutputGuardLoss(plans, plan, family, 0)
    defense = GuardDefense(plans.stacks.prompts, plan, evade=2.0, output_loss=loss)
    passed, penalty = defense.differentiable(given)
    # no guard reads the prompt itself
    assert passed.states["text"] is states
    with torch.no_grad():
        guess = OutputGuardLoss(plans, plan, family, 0).of_first_guess(text)
    assert float(penalty.detach()) == pytest.approx(2.0 * float(guess.mean()), rel=1e-4)
    (slope,) = torch.autograd.grad(penalty, states)
    assert slope.norm() > 0
    with torch.no_grad():
        away = text.with_states({"text": states - 0.05 * slope / slope.norm()})
        assert OutputGuardLoss(plans, plan, family, 0).of_first_guess(away) < guess


def test_only_plans_with_output_guards_have_an_image_loss(
    tiny_pipeline: tuple[Family, Path],
) -> None:
    family, (plans, plan) = tiny_pipeline[0], plans_of(tiny_pipeline)
    text = encoded(family)
    assert GuardDefense(plans.stacks.prompts, plan, evade=1.0).image_loss(text) is None
    inspection = OutputGuardLoss(plans, plan, family, 0)
    with torch.no_grad():
        weighed = GuardDefense(
            plans.stacks.prompts, plan, evade=0.5, output_loss=inspection
        ).image_loss(text)
        expected = OutputGuardLoss(plans, plan, family, 0).of_images(text)
    assert weighed is not None and torch.allclose(weighed, 0.5 * expected)
    # the inspection of images does not change the conditioning
    passed, blocked = GuardDefense(
        plans.stacks.prompts, plan, evade=0.5, output_loss=inspection
    ).exact(text)
    assert passed.states["text"] is text.states["text"] and not blocked.any()


def test_the_command_searches_against_a_classifier(
    tiny_pipeline: tuple[Family, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family, folder = tiny_pipeline
    inspected: list[int] = []
    of_images = OutputGuardLoss.of_images
    monkeypatch.setattr(
        OutputGuardLoss,
        "of_images",
        lambda self, text: inspected.append(text.rows) or of_images(self, text),
    )
    out = tmp_path / "white-box.jsonl"
    options = ("--prompts", "1", "--efforts", "0,1", "--views", "2", "--candidates", "6")
    options += ("--length", "3", "--seeds", "1", "--curve-seeds", "1")
    guard = folder / "look.safetensors"
    run_white_box(monkeypatch, family, out, *options, artifact=guard, method="latents")
    rows = read_rows(out, ImagePrompt)
    assert {(row.kind, row.against) for row in rows} == {("white-box", "latents")}
    assert [row.effort for row in rows] == [0, 1]
    # the start alone, then the best of its swaps and itself
    assert inspected == [1, denoiser._GENERATED + 1]
