"""An attacker who knows that images are looked at: what it draws, and what it makes of that."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.attacks import command, denoiser, white_box
from benchmarks.attacks.denoiser import Denoising, Nothing
from benchmarks.attacks.target import Target
from benchmarks.attacks.white_box import GUIDANCE, SEEDS, STEPS, Onlookers, ThroughGuard
from guard.config.schema import Config, GuardConfig, PolicyConfig
from guard.data.prompts import ImagePrompt, read_rows
from guard.plans.images import ImagePlan, ImagePlans
from steering.engines.diffusion.engine import DiffusionEngine, ImageStart
from steering.engines.diffusion.families import Family
from steering.images.conditioning import Conditioning
from steering.images.stacks import ImageStacks
from tests.benchmarks.attacks.tiny import pipeline
from tests.guard.toy_images import save_drawn_latents
from tests.server.tiny_pipeline import save_pipeline

PROMPTS = ["a knife", "a cat", "a dog"]


class Drawn(Nothing):
    """Tells rows by their number; remembers which were drawn."""

    def __init__(self, more: float = 10.0) -> None:
        self.more, self.rows = more, list[Conditioning]()

    def looked(self, text: Conditioning) -> Tensor:
        self.rows.append(text)
        return self.more + torch.arange(float(text.rows))


@pytest.fixture(scope="module")
def target() -> Target:
    return Target(pipeline())


def losses(target: Target, between: Any, candidates: Tensor) -> Tensor:
    latents = torch.randn(4, 8, 16, 16, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(0)
    objective = Denoising(
        target, latents, views=2, prompt=None, generator=generator, between=between
    )
    objective.renew(0)
    return objective.losses(candidates)


def candidates(target: Target) -> Tensor:
    texts = ("a cat", "a dog", "a car", "a pig", "a rose", "a tree", "a bus", "a knife")
    return torch.tensor([target.content(text)[:2] for text in texts])


def test_only_the_best_and_what_is_there_are_drawn_and_chosen_among(target: Target) -> None:
    rows, looking = candidates(target), Drawn()
    plain = losses(target, Nothing(), rows)
    found = losses(target, looking, rows)
    best = plain[:-1].topk(denoiser._DRAWN, largest=False).indices.tolist()
    drawn = [*best, len(rows) - 1]
    (text,) = looking.rows
    assert torch.equal(text.states["text"], target.encode(rows).states["text"][drawn])
    # what the guards say of a row is added to that row
    assert found[drawn].tolist() == pytest.approx(
        [float(plain[row]) + 10.0 + number for number, row in enumerate(drawn)]
    )
    others = sorted(set(range(len(rows))) - set(drawn))
    assert others and found[others].isinf().all()


def test_where_nobody_looks_every_candidate_keeps_its_error(target: Target) -> None:
    assert losses(target, Nothing(), candidates(target)).isfinite().all()


@pytest.mark.parametrize("count", [1, 3])
def test_few_candidates_are_all_drawn(target: Target, count: int) -> None:
    rows, looking = candidates(target)[:count], Drawn()
    found = losses(target, looking, rows)
    assert len(found) == count == looking.rows[0].rows and found.isfinite().all()


def test_what_cannot_be_typed_stays_worth_nothing(target: Target) -> None:
    rows = candidates(target)
    piece = target.tokenizer.convert_tokens_to_ids("##q")
    rows[2] = torch.tensor([piece, rows[2, 0]])
    assert losses(target, Drawn(more=-1e3), rows)[2].isinf()


# -- a classifier that an attacker knows ---------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Family, Path]:
    """A tiny pipeline, and a classifier that fires on whatever it draws."""
    folder = tmp_path_factory.mktemp("onlookers")
    family = save_pipeline(folder / "pipeline")
    save_drawn_latents(folder / "look.safetensors", family, threshold=-50.0)
    return family, folder


def plans_of(made: tuple[Family, Path], **changed: Any) -> tuple[ImagePlans, ImagePlan]:
    family, folder = made
    look = GuardConfig(name="look", artifact=folder / "look.safetensors", **changed)
    config = Config(guards=(look,), policies={"p": PolicyConfig(guards=("look",))})
    plans = ImagePlans(config, family, name="tiny")
    return plans, plans["p"]


def encoded(family: Family) -> Conditioning:
    with torch.no_grad():
        return family.encode(PROMPTS)


def test_it_knows_what_the_engine_will_say(made: tuple[Family, Path]) -> None:
    family, (plans, plan) = made[0], plans_of(made)
    with torch.no_grad():
        found = Onlookers(plans, plan, family, 2).over(encoded(family))
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
    assert bool((expected > 0).all()) and torch.allclose(found, expected, rtol=1e-3)


def test_every_look_is_at_other_images(made: tuple[Family, Path]) -> None:
    family, (plans, plan) = made[0], plans_of(made)
    looking, text = Onlookers(plans, plan, family, 0), encoded(family)
    with torch.no_grad():
        looks = [looking.over(text), looking.over(text), looking.guess(text)]
    assert not torch.allclose(looks[0], looks[1], rtol=1e-3)
    assert looks[2].shape == looks[0].shape


def test_under_its_threshold_it_says_nothing(made: tuple[Family, Path]) -> None:
    family, (plans, plan) = made[0], plans_of(made, threshold=1e6)
    with torch.no_grad():
        assert not Onlookers(plans, plan, family, 0).over(encoded(family)).any()


def test_slopes_lead_out_of_its_sight(made: tuple[Family, Path]) -> None:
    family, (plans, plan) = made[0], plans_of(made)
    text = encoded(family).select(slice(0, 1))
    states = text.states["text"].clone().requires_grad_()
    given = text.with_states({"text": states})
    through = ThroughGuard(
        plans.stacks.prompts, plan, evade=2.0, onlookers=Onlookers(plans, plan, family, 0)
    )
    passed, more = through.slope(given)
    # the prompt itself is nobody's business
    assert passed.states["text"] is states
    with torch.no_grad():
        guess = Onlookers(plans, plan, family, 0).guess(text)
    assert float(more.detach()) == pytest.approx(2.0 * float(guess.mean()), rel=1e-4)
    (slope,) = torch.autograd.grad(more, states)
    assert slope.norm() > 0
    with torch.no_grad():
        away = text.with_states({"text": states - 0.05 * slope / slope.norm()})
        assert Onlookers(plans, plan, family, 0).guess(away) < guess


def test_through_the_guard_images_are_looked_at_only_where_someone_does(
    made: tuple[Family, Path],
) -> None:
    family, (plans, plan) = made[0], plans_of(made)
    text = encoded(family)
    assert ThroughGuard(plans.stacks.prompts, plan, evade=1.0).looked(text) is None
    looking = Onlookers(plans, plan, family, 0)
    with torch.no_grad():
        weighed = ThroughGuard(plans.stacks.prompts, plan, evade=0.5, onlookers=looking).looked(
            text
        )
        expected = Onlookers(plans, plan, family, 0).over(text)
    assert weighed is not None and torch.allclose(weighed, 0.5 * expected)
    # what is exact of a prompt is not changed by who looks later
    passed, lost = ThroughGuard(plans.stacks.prompts, plan, evade=0.5, onlookers=looking).exact(
        text
    )
    assert passed.states["text"] is text.states["text"] and not lost.any()


def test_the_command_searches_against_a_classifier(
    made: tuple[Family, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family, folder = made
    lines = ["[[guards]]", 'name = "look"', f'artifact = "{folder / "look.safetensors"}"']
    lines += ["[policies.knife-latents]", 'guards = ["look"]']
    (tmp_path / "config.toml").write_text("\n".join(lines), "utf-8")
    monkeypatch.setattr(command, "load", lambda source: Target(family.pipeline))
    drawn: list[int] = []
    over = Onlookers.over
    monkeypatch.setattr(
        Onlookers, "over", lambda self, text: drawn.append(text.rows) or over(self, text)
    )
    out = tmp_path / "white-box.jsonl"
    arguments = ["--out", str(out), "--config", str(tmp_path / "config.toml")]
    arguments += ["--policy", "{concept}-latents", "--method", "latents", "--concepts", "knife"]
    arguments += ["--prompts", "1", "--efforts", "0,1", "--views", "2", "--candidates", "6"]
    arguments += ["--length", "3", "--seeds", "1", "--curve-seeds", "1"]
    monkeypatch.setattr(sys, "argv", ["white_box", *arguments])
    white_box.main()
    rows = read_rows(out, ImagePrompt)
    assert {(row.kind, row.against) for row in rows} == {("white-box", "latents")}
    assert [row.effort for row in rows] == [0, 1]
    # the start alone, then the best of its swaps and itself
    assert drawn == [1, denoiser._DRAWN + 1]
